// The pictures that a page already shows, for the controls: nothing is stored twice.

/** A gallery as {columns, rows: [{name, urls}]}. */
export function galleryOf(table) {
  const [head, ...lines] = table.rows;
  return {
    columns: [...head.cells].slice(1).map((cell) => cell.textContent),
    rows: lines.map((line) => ({
      name: line.cells[0].textContent,
      urls: [...line.querySelectorAll("img")].map((image) => image.src),
    })),
  };
}

/** The figures with a picture in `place`, as {name, url}. */
export function figuresOf(place) {
  return [...place.querySelectorAll("figure")]
    .filter((figure) => figure.querySelector("img"))
    .map((figure) => ({
      name: figure.querySelector("figcaption")?.textContent ?? "",
      url: figure.querySelector("img").src,
    }));
}
