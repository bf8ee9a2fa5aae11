"""Hub ids, against a stand-in hub over real HTTP, in processes of their own (the hub's address is read at import)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import COMMIT, serve

from lcbench.errors import CannotWrite, ModelError
from lcbench.models import hub
from tiny import save_tiny

TOKEN = "hf_verySecretTokenOfSomeone"

SCRIPT = """
import json, sys
from pathlib import Path
from lcbench.config.spec import ModelSpec
from lcbench.errors import LcbenchError
from lcbench.models.load import describe, load
answers = []
for item in json.loads(sys.argv[1]):
    act = describe if item.pop("dry", False) else load
    try:
        got = act(ModelSpec(**item), Path(sys.argv[2]))
        answers.append((got[0] if act is describe else got.info).to_dict())
    except LcbenchError as error:
        answers.append({"error": type(error).__name__, "message": error.message, "next": error.next_step})
print(json.dumps(answers))
"""


def ask(items: list[dict[str, Any]], hf_home: Path, endpoint: str, **env: str) -> list[dict[str, Any]]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(items), str(hf_home / "lcbench")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**inherited, "HF_HOME": str(hf_home), "HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, **env},
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_hub_id_online_offline_and_when_the_hub_is_gone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    repos = {"someone/tiny": save_tiny(tmp_path / "tiny"), "someone/images": tmp_path / "images"}
    hf_home, tiny = tmp_path / "hf", {"name": "someone/tiny"}
    refused = {
        "someone/gone": "does not know it",
        "someone/secret": "refused access",
        "someone/gated": "is gated",
        "someone/images": "no config.json on the hub",
    }
    items = [{**tiny, "dry": True}, *({"name": name} for name in refused), {**tiny, "revision": "v9"}, tiny]
    with serve(repos) as server:
        dry, *errors, wrong_revision, loaded = ask(items, hf_home, server.address)
        asked, port = server.asked, server.address.rpartition(":")[2]
        assert server.tokens == {f"Bearer {TOKEN}"}

    assert loaded.get("revision") == COMMIT, loaded
    assert (loaded["source"], loaded["weights_sha256"], loaded["layers"]) == ("hub", None, 4)
    assert dry == loaded
    first_error = next(i for i, line in enumerate(asked) if "someone/gone" in line)
    assert not [line for line in asked[:first_error] if "safetensors" in line]  # the dry description needs no weights
    assert [line for line in asked[first_error:] if line.endswith("model.safetensors")]

    for answer, (name, words) in zip(errors, refused.items(), strict=True):
        assert words in answer["message"], answer
        assert name in answer["message"]
        assert answer["next"]
    assert "hf auth login" in errors[1]["next"]
    assert "hf auth login" in errors[2]["next"]
    assert "no revision 'v9'" in wrong_revision["message"]

    never = {"name": "someone/never"}
    offline, unknown = ask([tiny, never], hf_home, server.address, HF_HUB_OFFLINE="1")
    assert offline == loaded
    assert "offline mode is on" in unknown["message"]
    assert "HF_HUB_OFFLINE" in unknown["next"]

    start = time.monotonic()
    cached, unknown = ask([tiny, never], hf_home, f"http://user:secretword@127.0.0.1:{port}")
    assert cached == loaded
    assert f"the hub at 127.0.0.1:{port} could not be reached (connection refused)" in unknown["message"]
    assert "secretword" not in str(unknown)
    assert time.monotonic() - start < 60  # huggingface_hub alone would try each file for half a minute


def test_an_unknown_host_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    with pytest.raises(ModelError) as caught:
        hub.commit_of("someone/never-downloaded", None)
    assert "hub.invalid could not be reached (no such host)" in caught.value.message


@pytest.mark.parametrize(("status", "words"), [(500, "failed with status 500"), (429, "too many requests")])
def test_a_hub_in_trouble(status: int, words: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    error = hub.explain("someone/tiny", None, HfHubHTTPError(f"no, {TOKEN}", response=response))
    assert words in error.message
    assert TOKEN not in error.message + error.next_step


def test_a_full_disk_while_downloading() -> None:
    error = hub.explain("someone/tiny", None, OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(error, CannotWrite)
    assert "HF_HOME" in error.next_step


def test_text_of_exceptions_loses_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "my-own-token")
    error = OSError(f"\n  request with Bearer abc.def and {TOKEN} and my-own-token failed.\nmore")
    text = hub.plain(error)
    assert "more" not in text
    assert not any(secret in text for secret in ("abc.def", TOKEN, "my-own-token"))
    assert text.startswith("request with")
