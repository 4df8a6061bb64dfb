// Small helpers of the book's pages; nothing here asks the network.

// Opened from the disk, a page may not read other pages: search then lists titles without excerpts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

document.addEventListener("DOMContentLoaded", () => {
  // Wide outputs scroll inside their own box; those who use the keyboard must be able to reach it.
  for (const box of document.querySelectorAll(".cell_output .output.text_html, .pst-scrollable-table-container")) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
  }

  // The ledger's filter: verdicts, words, and (in a run's book) only where the run differs.
  const form = document.querySelector("form.ledger-filter");
  if (!form) return;
  const said = form.querySelector("output");
  const apply = () => {
    const verdicts = new Set([...form.querySelectorAll("[name=verdict]:checked")].map((box) => box.value));
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const differs = form.querySelector("[name=differs]")?.checked;
    const everything = words.length === 0 && verdicts.size === 4 && !differs;
    let shown = 0;
    for (const paper of document.querySelectorAll(".ledger-paper")) {
      const title = paper.querySelector("h3").textContent.toLowerCase();
      let inside = 0;
      for (const row of paper.querySelectorAll("tbody tr")) {
        const text = title + " " + row.textContent.toLowerCase();
        row.hidden = !verdicts.has(row.dataset.verdict) || !words.every((word) => text.includes(word))
          || (differs && row.dataset.differs !== "true");
        if (!row.hidden) inside += 1;
      }
      shown += inside;
      const named = paper.classList.contains("is-unwritten") && words.length > 0 && !differs
        && words.every((word) => title.includes(word));
      paper.hidden = !everything && inside === 0 && !named;
    }
    for (const part of document.querySelectorAll(".ledger-full > section")) {
      part.hidden = !part.querySelector(".ledger-paper:not([hidden])");
    }
    said.textContent = everything ? "" : `${shown} claim${shown === 1 ? "" : "s"} shown`;
    document.querySelector(".ledger-empty").hidden =
      document.querySelector(".ledger-paper:not([hidden])") !== null;
  };
  form.addEventListener("input", apply);
});
