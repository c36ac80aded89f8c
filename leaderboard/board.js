// The leaderboard's tables, in the app and in the static site: sorting, searching, copying. No other hosts.
"use strict";
(() => {
  if (window.uqBoard) return;
  window.uqBoard = true;

  // The number that a cell begins with; an id or a date that begins with digits is text.
  function numberOf(cell) {
    if (cell && cell.dataset.v) return parseFloat(cell.dataset.v);
    const text = (cell ? cell.textContent : "").trim().replace(/,/g, "");
    const match = text.match(/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?=$|[\s±†‡#%(–/]|floor)/i);
    return match ? parseFloat(match[0]) : NaN;
  }

  function sort(head) {
    const table = head.closest("table");
    const now = head.getAttribute("aria-sort");
    const down = now ? now === "ascending" : head.dataset.down === "1"; // best first
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("block")).map((row) => {
        const cell = row.cells[head.cellIndex];
        return { row, text: cell ? cell.textContent.trim() : "", number: numberOf(cell) };
      });
      const filled = rows.filter(({ text }) => text && text !== "–");
      const numeric = 2 * filled.filter(({ number }) => !Number.isNaN(number)).length > filled.length;
      rows.sort((a, b) => {
        if (!numeric) return a.text.localeCompare(b.text, undefined, { numeric: true }) * (down ? -1 : 1);
        const [x, y] = [Number.isNaN(a.number), Number.isNaN(b.number)];
        return x || y ? x - y : (a.number - b.number) * (down ? -1 : 1); // no number: last
      });
      body.append(...rows.map(({ row }) => row));
    }
  }

  // Only the rows with all words stay.
  function search(input) {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const box = input.closest(".uq-table");
    let shown = 0;
    for (const row of box.querySelectorAll("tbody tr:not(.block)")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    box.querySelector(".uq-count").textContent = words.length ? `${shown} rows` : "";
  }

  async function copy(button, text) {
    const label = button.textContent;
    try { await navigator.clipboard.writeText(text); }
    catch {
      const box = document.createElement("textarea");
      box.value = text; document.body.append(box); box.select();
      document.execCommand("copy"); box.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.matches(".uq .sort")) sort(button.closest("th"));
    if (button.matches(".uq-copy")) copy(button, button.dataset.copy);
    if (button.matches(".uq-link")) {
      const link = new URL(window.location.href);
      link.searchParams.set("snapshot", button.dataset.snapshot);
      copy(button, link.href);
    }
  });
  document.addEventListener("input", ({ target }) => target.matches(".uq-search") && search(target));
  document.addEventListener("change", ({ target }) => { // on a phone: one data set at a time
    if (!target.matches(".uq-choose")) return;
    for (const cell of target.closest(".uq-table").querySelectorAll("[data-j]")) {
      cell.classList.toggle("other", cell.dataset.j !== target.value);
    }
  });
})();
