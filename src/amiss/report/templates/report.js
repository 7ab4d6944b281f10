
"use strict";
// Sorting for tables marked data-sortable; without scripts they stay readable in their first order.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const collator = new Intl.Collator("en", { numeric: true });
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const numeric = head.dataset.type === "number";
      // Numbers are asked for the largest first, text from A.
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const cell of head.parentNode.cells) cell.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = Array.from(body.rows, (row) => {
        const cell = row.cells[head.cellIndex];
        const value = cell.dataset.value ?? cell.textContent.trim();
        return { row, value: numeric ? parseFloat(value) : value };
      });
      keyed.sort((a, b) => {
        if (!numeric) return sign * collator.compare(a.value, b.value);
        const missing = Number.isNaN(a.value) - Number.isNaN(b.value);
        return missing || sign * (a.value - b.value) || 0;
      });
      body.append(...keyed.map((item) => item.row));
    });
  }
}
