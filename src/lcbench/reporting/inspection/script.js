"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const spans = Array.from($("text").children);
  const layer = $("layer"), head = $("head"), step = $("step");
  const decoded = new Map();
  let chosen = -1;

  const bits = (text) => {
    if (!decoded.has(text)) {
      const raw = atob(text);
      decoded.set(text, Uint8Array.from(raw, (c) => c.charCodeAt(0)));
    }
    return decoded.get(text);
  };
  const has = (set, at) => (set[at >> 3] >> (at & 7)) & 1;

  // The heads that are counted: [layer, head, bits]; bits null where a step reads everything.
  const heads = () => {
    const at = Number(layer.value), which = head.value, now = step ? Number(step.value) : 0;
    const found = [];
    for (let i = 0; i < data.kept.length; i += 1) {
      if (at >= 0 && i !== at) continue;
      const sets = now ? data.fetched[i][now - 1] : data.kept[i];
      if (sets === null || sets === undefined) {
        if (which === "") data.kept[i].forEach((_, h) => found.push([i, h, null]));
        else found.push([i, Number(which), null]);
        continue;
      }
      sets.forEach((set, h) => { if (which === "" || h === Number(which)) found.push([i, h, bits(set)]); });
    }
    return found;
  };

  const fillHeads = () => {
    const now = head.value, most = Math.max(...data.kept.map((sets) => sets.length));
    const at = Number(layer.value), count = at >= 0 ? data.kept[at].length : most;
    while (head.options.length > 1) head.remove(1);
    for (let h = 0; h < count; h += 1) head.add(new Option(String(h), String(h)));
    head.value = Number(now) < count ? now : "";
  };

  const shade = () => {
    const sets = heads(), total = sets.length || 1;
    const counts = new Uint32Array(data.tokens);
    for (const [, , set] of sets) for (let p = 0; p < data.tokens; p += 1) if (set === null || has(set, p)) counts[p] += 1;
    let held = 0;
    data.cells.forEach(([start, stop], i) => {
      let most = 0;
      for (let p = start; p < stop; p += 1) { most = Math.max(most, counts[p]); held += counts[p]; }
      spans[i].className = "l" + (most ? Math.min(8, 1 + Math.floor(most * 7 / total)) : 0) + (i === chosen ? " chosen" : "");
    });
    const at = Number(layer.value), now = step ? Number(step.value) : 0;
    $("layer-name").textContent = at < 0 ? "all" : String(at);
    layer.setAttribute("aria-valuetext", at < 0 ? "all layers" : "layer " + at);
    if (step) {
      const name = now ? now + ": what was fetched" : "0: what is kept";
      $("step-name").textContent = name;
      step.setAttribute("aria-valuetext", name);
    }
    const where = (at < 0 ? "All layers" : "Layer " + at) + (head.value === "" ? "" : ", head " + head.value);
    const whole = now ? data.tokens : data.given;
    const share = (100 * held / (total * whole)).toFixed(1);
    const reads = now && sets.every(([, , set]) => set === null);
    $("said").textContent = where + (now ? ", step " + now : "") + ": " +
      (reads ? "nothing is looked up, all is read" : share + " % of " + whole + " tokens " + (now ? "fetched" : "kept"));
    $("shaded").textContent = "Shaded by " + (at < 0 ? "all layers" : "layer " + at + " of 0 to " + (data.kept.length - 1)) +
      (head.value === "" ? ", all its heads" : ", head " + head.value).replace("its", at < 0 ? "their" : "its") +
      (now ? ", step " + now + " after the prompt" : "") + ".";
    listMerges(at);
    tell();
  };

  const tell = () => {
    if (chosen < 0) return;
    const [start, stop] = data.cells[chosen], sets = heads(), named = [];
    for (const [i, h, set] of sets) {
      let yes = set === null;
      for (let p = start; p < stop && !yes; p += 1) yes = Boolean(has(set, p));
      if (yes) named.push(i + "." + h);
    }
    const who = stop - start > 1 ? "Tokens " + start + " to " + (stop - 1) : "Token " + start;
    const shown = named.slice(0, 40).join(", ") + (named.length > 40 ? " …" : "");
    $("token").classList.remove("screen");
    $("token").textContent = who + " (id " + data.ids.slice(start, stop).join(", ") + ") “" + spans[chosen].textContent +
      "”: " + named.length + " of " + sets.length + " heads" + (named.length ? " (layer.head " + shown + ")" : "");
  };

  const stretches = (at) => {
    const found = [];
    for (const p of at) {
      const last = found[found.length - 1];
      if (last && p === last[1] + 1) last[1] = p;
      else found.push([p, p]);
    }
    return found.map(([a, b]) => (a === b ? String(a) : a + "–" + b)).join(", ");
  };

  const listMerges = (at) => {
    const list = $("merged");
    if (!list) return;
    list.replaceChildren();
    if (at < 0) { $("merged-count").textContent = "Choose a layer."; return; }
    const wanted = data.merged[at].filter((one) => head.value === "" || one[0] === Number(head.value));
    $("merged-count").textContent = wanted.length + " merges in layer " + at + (wanted.length > 500 ? ", the first 500 of them:" : ":");
    for (const [h, from, into] of wanted.slice(0, 500)) {
      const item = document.createElement("li");
      item.textContent = "head " + h + ": " + stretches(from) + " → " + stretches(into);
      list.append(item);
    }
  };

  const choose = (at) => {
    if (at < 0 || at >= spans.length) return;
    if (chosen >= 0) spans[chosen].classList.remove("chosen");
    chosen = at;
    spans[at].classList.add("chosen");
    spans[at].scrollIntoView({ block: "nearest" });
    tell();
  };

  layer.addEventListener("input", () => { fillHeads(); shade(); });
  head.addEventListener("change", shade);
  if (step) step.addEventListener("input", shade);
  $("text").addEventListener("click", (event) => {
    const at = spans.indexOf(event.target);
    if (at >= 0) choose(at);
  });
  $("text").addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
    let to = null;
    if (event.key in moves) to = Math.min(spans.length - 1, Math.max(0, (chosen < 0 ? -1 : chosen) + moves[event.key]));
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = spans.length - 1;
    if (to === null) return;
    event.preventDefault();
    choose(to);
  });
  fillHeads();
  shade();
})();
