"use strict";
// Without this script the table is whole and in the order of the ranking; with it, it can be
// sorted by the buttons that it puts into the headings, and filtered.
(() => {
  const table = document.getElementById("policies");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells].slice(0, -1);
  const text = document.getElementById("contains");
  const status = document.getElementById("status");
  const count = document.getElementById("count");

  const value = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };

  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b);
    return a - b;
  };

  const sort = (column, direction) => {
    const known = (row) => !Number.isNaN(value(row, column)); // what has no number is last
    rows.sort((a, b) => {
      if (known(a) !== known(b)) return known(a) ? -1 : 1;
      return known(a) ? direction * compare(value(a, column), value(b, column)) : 0;
    });
    body.append(...rows);
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  };

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => {
      sort(column, heading.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
    heading.replaceChildren(button);
  });

  const filter = () => {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const named = row.querySelector("th").textContent.toLowerCase().includes(wanted);
      row.hidden = !named || (status.value !== "" && row.dataset.status !== status.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };

  const form = document.getElementById("filter");
  form.hidden = document.getElementById("sorts").hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  filter();
})();
