// The static site of uqharness: sorting and searching of tables, figures when they come into view. No other hosts.
"use strict";

// The number that a cell begins with; an id or a date that begins with digits is text. A floor may follow at once.
function numberOf(cell) {
  const text = (cell ? cell.textContent : "").trim().replace(/,/g, "");
  const found = text.match(/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?=$|[\s±†‡#%(–]|floor)/i);
  return found ? parseFloat(found[0]) : NaN;
}

function sortBy(table, index, down) {
  const sign = down ? -1 : 1;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("block")).map((row) => {
      const cell = row.cells[index];
      return { row, text: cell ? cell.textContent.trim() : "", number: numberOf(cell) };
    });
    const filled = rows.filter(({ text }) => text && text !== "–");
    const numeric = 2 * filled.filter(({ number }) => !Number.isNaN(number)).length > filled.length;
    rows.sort((a, b) => {
      if (!numeric) return a.text.localeCompare(b.text, undefined, { numeric: true }) * sign;
      const [x, y] = [Number.isNaN(a.number), Number.isNaN(b.number)];
      return x || y ? x - y : (a.number - b.number) * sign; // no number: last
    });
    body.append(...rows.map(({ row }) => row));
  }
}

for (const table of document.querySelectorAll("table.uq")) {
  const heads = [...(table.tHead ? table.tHead.rows[0].cells : [])];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortBy(table, index, down);
    });
  });
}

for (const input of document.querySelectorAll("input.search")) {
  const boxes = document.querySelectorAll(`#${input.dataset.for} table.uq`);
  const status = document.getElementById(`${input.dataset.for}-count`);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const table of boxes) {
      for (const row of table.querySelectorAll("tbody tr:not(.block)")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
    }
    status.textContent = words.length ? `${shown} rows` : "";
  });
}

if (document.querySelector(".figure")) {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        const box = entry.target;
        drawFigure(box, JSON.parse(box.querySelector("script").textContent), box.id, "svg");
      }
    }
  }, { rootMargin: "200px" });
  document.querySelectorAll(".figure").forEach((box) => seen.observe(box));
}
