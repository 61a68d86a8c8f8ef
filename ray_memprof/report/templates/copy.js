// Buttons that copy the SQL behind a figure or a table; also from a file, where a browser may refuse the clipboard.
"use strict";

{
  const texts = JSON.parse(document.getElementById("sql").textContent);
  const told = document.getElementById("copied");
  let soon = 0;

  // The older way, for browsers and pages without navigator.clipboard.
  function copyOfSelection(text) {
    const area = document.createElement("textarea");
    const focused = document.activeElement;
    area.value = text;
    area.readOnly = true;
    area.className = "offscreen";
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return isCopied;
  }

  async function isCopied(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return copyOfSelection(text);
    }
  }

  // Where nothing may be copied, the text is shown, selected, for the reader's own hands.
  function show(button, text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.readOnly = true;
    area.rows = 12;
    area.className = "sql";
    area.setAttribute("aria-label", "SQL");
    button.parentElement.after(area);
    area.focus();
    area.select();
  }

  async function copy(button) {
    const name = button.dataset.sql;
    const isDone = await isCopied(texts[name]);
    if (!isDone) show(button, texts[name]);
    told.textContent = isDone ? `SQL of ${name} copied: paste it between quotes after ray-memprof query` : "The browser refuses to copy: the SQL is selected";
    clearTimeout(soon);
    soon = setTimeout(() => (told.textContent = ""), 4000);
  }

  for (const button of document.querySelectorAll("[data-sql]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
}
