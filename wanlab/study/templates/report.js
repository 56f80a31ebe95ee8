"use strict";
// Tables sort by the column whose heading is pressed: numbers as numbers, rows without one last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
      const number = (text) => (/^[-+]?[\d.]/.test(text) ? parseFloat(text) : NaN);
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)], [p, q] = [number(x), number(y)];
        if (Number.isNaN(p) && Number.isNaN(q)) return up ? x.localeCompare(y) : y.localeCompare(x);
        if (Number.isNaN(p) || Number.isNaN(q)) return Number.isNaN(p) ? 1 : -1;
        return up ? p - q : q - p;
      });
      body.append(...rows);
    });
  });
}
// All clips show the same moment: the first one leads, the others follow when they drift.
const clips = [...document.querySelectorAll("video")];
const play = document.getElementById("play"), scrub = document.getElementById("scrub");
if (clips.length) {
  const lead = clips[0];
  const show = (playing) => {
    play.setAttribute("aria-pressed", String(playing));
    play.textContent = playing ? "Pause all" : "Play all";
  };
  const align = (seconds) => { for (const clip of clips) if (Math.abs(clip.currentTime - seconds) > 0.05) clip.currentTime = seconds; };
  play.addEventListener("click", async () => {
    const playing = lead.paused;
    show(playing);
    if (playing) { align(lead.currentTime); await Promise.allSettled(clips.map((clip) => clip.play())); }
    else { for (const clip of clips) clip.pause(); align(lead.currentTime); }
  });
  scrub.addEventListener("input", () => {
    for (const clip of clips) clip.pause();
    show(false);
    align((scrub.value / 1000) * (lead.duration || 0));
  });
  lead.addEventListener("timeupdate", () => {
    if (lead.paused) return;
    scrub.value = String(Math.round((1000 * lead.currentTime) / (lead.duration || 1)));
    for (const clip of clips) if (Math.abs(clip.currentTime - lead.currentTime) > 0.12) clip.currentTime = lead.currentTime;
  });
}
// A figure that is pressed is shown by itself, as large as its letters need; pressed again, it closes.
const enlarged = document.getElementById("enlarged"), shown = enlarged.querySelector("img");
for (const button of document.querySelectorAll("button.zoom"))
  button.addEventListener("click", () => {
    const image = button.querySelector("img");
    shown.src = image.src;
    shown.alt = image.alt;
    enlarged.showModal();
  });
shown.addEventListener("click", () => enlarged.close());
