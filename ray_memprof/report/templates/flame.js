
// ---- search in flame graphs: matching frames are filled, and their bytes are counted ----

// A frame is searched by its function, file and line.
function lettersOfFrames(trace) {
  return trace.labels.map((label, index) => lettersOf(`${label} ${trace.text[index]}`).toLowerCase());
}

// A frame inside of a matching one counts with that one: its bytes are part of it. Callers come before what they call.
function matching(trace, letters, wanted) {
  const found = letters.map((text, index) => index > 0 && text.includes(wanted));
  const isInside = [];
  let bytes = 0;
  trace.parents.forEach((parent, index) => {
    const isCounted = parent !== "" && isInside[Number(parent)];
    if (found[index] && !isCounted) bytes += trace.values[index];
    isInside.push(found[index] || isCounted);
  });
  return { found, bytes };
}

function foundText(trace, { found, bytes }) {
  const num = found.filter(Boolean).length;
  if (num === 0) return "no frame matches";
  const share = trace.values[0] ? (100 * bytes) / trace.values[0] : 0;
  const sizes = `${sizeText(bytes)} of ${sizeText(trace.values[0])} (${share.toFixed(1)}%)`;
  return `${num.toLocaleString("en")} ${num === 1 ? "frame matches" : "frames match"}: ${sizes}`;
}

function searchable(field) {
  const id = field.dataset.search;
  const holder = document.querySelector(`[data-figure="${id}"]`);
  const trace = figureOf(holder).data[0];
  let letters = null; // made at the first search
  let soon = 0;
  const search = async () => {
    const wanted = field.value.trim().toLowerCase();
    letters ??= lettersOfFrames(trace);
    const result = wanted ? matching(trace, letters, wanted) : null;
    byId(`found-${id}`).textContent = result ? foundText(trace, result) : "";
    if (result) {
      changes.set(id, (figure) => {
        figure.data[0].marker.colors = result.found.map((is) => (is ? "var:accent" : "var:shade2"));
      });
    } else changes.delete(id);
    await plotly();
    if (isShown(holder)) draw(holder);
  };
  field.addEventListener("input", () => {
    clearTimeout(soon);
    soon = setTimeout(search, 150);
  });
}

for (const field of document.querySelectorAll("[data-search]")) searchable(field);
