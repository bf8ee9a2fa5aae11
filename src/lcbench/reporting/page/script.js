"use strict";
(function () {
  const find = (id) => document.getElementById(id);
  const table = find("table");
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  const original = Array.from(body.rows);

  // -- sorting: down, up, as it was -----------------------------------------------------------------------------------

  function value(row, column) {
    const text = row.cells[column].dataset.sort;
    if (column === 0) return text.toLowerCase();
    return text === "" ? null : Number(text);
  }

  function sort(column, direction) {
    const rows = original.slice();
    if (direction) {
      const sign = direction === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        if (x === null || y === null) return (x === null) - (y === null); // without a score: always last
        return x < y ? -sign : x > y ? sign : 0;
      });
    }
    body.append(...rows);
  }

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const first = column === 0 ? "ascending" : "descending";
      const second = column === 0 ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const next = now === first ? second : now === second ? null : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      sort(column, next);
    });
  });

  // -- filtering -------------------------------------------------------------------------------------------------------

  const matches = (text, words) => words.every((word) => text.includes(word));
  const wordsOf = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);

  function filter() {
    const rows = wordsOf(find("rows")), columns = wordsOf(find("columns")), kind = find("kinds").value;
    const shown = heads.map((head) => {
      const own = head.dataset.kind;
      return own === "what" || ((!kind || own === kind) && matches(head.textContent.toLowerCase(), columns));
    });
    heads.forEach((head, i) => head.classList.toggle("hidden", !shown[i]));
    let count = 0;
    for (const row of original) {
      const visible = matches(row.cells[0].textContent.toLowerCase(), rows);
      row.classList.toggle("hidden", !visible);
      count += visible;
      Array.from(row.cells).forEach((cell, i) => cell.classList.toggle("hidden", !shown[i]));
    }
    const lines = shown.filter(Boolean).length - 3;
    find("found").textContent = `${count} of ${original.length} methods, ${lines} of ${heads.length - 3} columns`;
  }

  for (const id of ["rows", "columns", "kinds"]) find(id).addEventListener("input", filter);
  find("under").addEventListener("input", () => {
    table.classList.remove("show-interval", "show-bytes", "show-n");
    if (find("under").value) table.classList.add(`show-${find("under").value}`);
  });
  filter();

  // -- the samples behind a number -------------------------------------------------------------------------------------

  const PAGE = 25, LONG = 700;
  const dialog = find("drill");
  let data = null, all = [], list = [], page = 0;

  function bytes(count) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (count >= 999.5 && unit < 4) { count /= 1024; unit += 1; }
    return `${unit === 0 ? count : count.toPrecision(3)} ${units[unit]}`;
  }

  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text; // text and never markup: it comes from a model
    if (name) made.className = name;
    return made;
  }

  function textBlock(text) {
    const block = element("p", text, "text");
    block.dir = "auto";
    if (text.length <= LONG) return block;
    const details = element("details");
    const summary = element("summary", text.slice(0, 300) + " …", "text");
    summary.dir = "auto";
    details.append(summary, block);
    return details;
  }

  function entry(listing, name, text) {
    if (text === "" || text === null || text === undefined) return;
    const definition = element("dd");
    definition.append(textBlock(text));
    listing.append(element("dt", name), definition);
  }

  function shown(item) {
    const [row, score, pred, length, prompt, kept, made, held, full, simulated, cutFrom, error] = item.sample;
    const task = item.task;
    const li = element("li");
    const head = element("h3");
    const id = element("bdi", task.ids[row]);
    head.append(element("span", score === null ? "failed" : score.toFixed(2), score ? "score" : "score zero"), id);
    if (item.several) head.append(element("span", task.name, "quiet"));
    if (task.about[row]) head.append(element("span", task.about[row], "quiet"));
    const listing = element("dl");
    entry(listing, "error", error);
    if (error === null) entry(listing, `prediction${length > LONG ? `, ${length.toLocaleString("en")} characters` : ""}`, pred || "(nothing)");
    task.answers[row].forEach((answer, i) => entry(listing, i ? "" : "answers", answer || "(empty)"));
    entry(listing, "prompt begins", task.begins[row]);
    entry(listing, "prompt ends", task.ends[row]);
    if (error === null) {
      const ratio = held ? ` (${(full / held).toFixed(2)}x smaller)` : "";
      if (held !== null) entry(listing, "kept bytes", `${bytes(held)} of ${bytes(full)}${ratio}${simulated ? ", simulated" : ""}`);
      const was = cutFrom === null ? "" : `, cut from ${cutFrom.toLocaleString("en")}`;
      const counts = [["prompt", prompt, was], ["kept", kept, ""], ["new", made, ""]].filter(([, count]) => count !== null);
      if (counts.length) entry(listing, "tokens", counts.map(([name, count, more]) => `${name} ${count.toLocaleString("en")}${more}`).join("; "));
    }
    li.append(head, listing);
    return li;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(list.length / PAGE));
    find("pager").classList.toggle("hidden", pages === 1);
    find("nothing").classList.toggle("hidden", list.length > 0);
    page = Math.min(Math.max(page, 0), pages - 1);
    find("samples").replaceChildren(...list.slice(page * PAGE, (page + 1) * PAGE).map(shown));
    find("page").textContent = `page ${page + 1} of ${pages}`;
    find("before").disabled = page === 0;
    find("after").disabled = page === pages - 1;
    find("drill-found").textContent = `${list.length} of ${all.length} samples`;
  }

  function arrange() {
    const words = wordsOf(find("find")), order = find("order").value;
    list = all.filter((item) => {
      if (!words.length) return true;
      const row = item.sample[0];
      const text = [item.task.ids[row], item.sample[2], item.sample[11] || "", ...item.task.answers[row]].join("\n");
      return matches(text.toLowerCase(), words);
    });
    if (order !== "file") {
      const sign = order === "low" ? 1 : -1;
      const number = (item) => (item.sample[1] === null ? -1 : item.sample[1]);
      list.sort((a, b) => sign * (number(a) - number(b)));
    }
    page = 0;
    draw();
  }

  function open(button) {
    data = data || JSON.parse(find("data").textContent);
    const cells = button.dataset.cells.split(",").map((key) => data.cells[key]);
    const length = button.dataset.length, several = cells.length > 1;
    all = [];
    for (const cell of cells) {
      const task = data.tasks[cell.task];
      for (const sample of cell.rows) {
        if (!length || task.lengths[sample[0]] === length) all.push({ sample, task, several });
      }
    }
    const first = data.tasks[cells[0].task];
    const part = length ? `, length ${length}` : "";
    find("drill-title").textContent = several ? `${cells[0].title} and ${cells.length - 1} more tasks` : cells[0].title + part;
    const about = [`Texts are cut at ${find("data").dataset.longest} characters; the run's predictions folder has them whole.`];
    if (!several && !first.begins.some(Boolean)) {
      about.push(first.begin
        ? `The prompts are not at hand; one of them begins “${first.begin}” and ends “${first.end}”.`
        : "The prompts are not at hand.");
    }
    find("drill-about").textContent = about.join(" ");
    find("find").value = "";
    find("order").value = "file";
    arrange();
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.n");
    if (button) open(button);
  });
  find("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  find("order").addEventListener("input", arrange);
  find("find").addEventListener("input", arrange);
  find("before").addEventListener("click", () => { page -= 1; draw(); dialog.scrollTop = 0; });
  find("after").addEventListener("click", () => { page += 1; draw(); dialog.scrollTop = 0; });
}());
