"""A data set small enough to read: its manifest, its files, and where a server has them."""

from __future__ import annotations

import hashlib
import io
import json
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mirror_server import Mirror, Page

from lcbench.data.checksum import digest_bytes


@dataclass
class Tiny:
    """A data set ``tiny``: rows in an archive on the hub, a config file at a URL, one text file of unknown content.

    Attributes:
        folder: of its manifest. rows: task to rows. config, text: content.
    """

    folder: Path
    url: str
    rows: dict[str, list[dict[str, object]]]
    config: bytes
    text: bytes

    def lines(self, task: str, count: int | None = None) -> bytes:
        return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in self.rows[task][:count])

    def archive(self, prefix: str = "data/") -> bytes:
        return zip_of({f"{prefix}{task}.jsonl": self.lines(task) for task in self.rows})

    def write(self, **changes: str) -> None:
        """Write the manifest; ``changes`` replace pieces of it."""
        files = "".join(
            f"  - {{path: {task}.jsonl, source: hub, rows: {len(rows)}, tasks: [{task}], groups: [both],"
            f" git_blob: {digest_bytes(self.lines(task)).git_blob}}}\n"
            for task, rows in self.rows.items()
        )
        text = textwrap.dedent(f"""\
            name: tiny
            title: Tiny
            licence: none
            schema: {{text: string, answers: "list[string]", length: int, classes: "list[string]?"}}
            sources:
              hub: {{hub: [new/tiny, old/tiny], archive: data.zip, prefix: data/}}
              web: {{url: {self.url}/web/}}
            files:
              - {{path: config/lengths.json, source: web, kind: config, size: {len(self.config)},
                 sha256: {hashlib.sha256(self.config).hexdigest()}}}
              - {{path: config/extra.json, source: web, kind: config, optional: true}}
              - {{path: note.txt, source: web, kind: text, tasks: [note]}}
            """)
        text += files
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "tiny.yaml").write_text(text, encoding="utf-8")

    def serve(self, mirror: Mirror) -> None:
        """Everything where the manifest says, with ``HF_ENDPOINT`` being ``mirror.url``."""
        mirror.pages["/datasets/new/tiny/resolve/main/data.zip"] = Page(self.archive())
        mirror.pages["/web/config/lengths.json"] = Page(self.config)
        mirror.pages["/web/config/extra.json"] = Page(b'{"extra": 1}')
        mirror.pages["/web/note.txt"] = Page(self.text)


def zip_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()
