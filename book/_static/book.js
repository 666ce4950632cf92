// Tables that sort by a click on a head, and the filter of the scorecard.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".lrc-table table, #scorecard table, section.scorecard table")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 8) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const sort = () => {
        const up = head.getAttribute("aria-sort") !== "ascending", value = row => row.cells[column].textContent.trim();
        const number = text => parseFloat(text.replace("−", "-").replace(/^at (least|most) /, ""));
        const key = (a, b) => number(a) - number(b) || a.localeCompare(b);
        const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * key(value(a), value(b)));
        for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...rows);
      };
      head.setAttribute("aria-sort", "none");
      head.tabIndex = 0;
      head.title = "Sort";
      head.addEventListener("click", sort);
      head.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } });
    });
  }
  const tables = document.querySelectorAll("#scorecard table");
  if (tables.length) {
    const label = document.createElement("label"), input = document.createElement("input");
    label.className = "scorecard-filter";
    label.textContent = "Show claims with the words ";
    input.type = "search";
    label.append(input);
    document.querySelector("#scorecard h1").after(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of document.querySelectorAll("#scorecard tbody tr"))
        row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    });
  }
});
