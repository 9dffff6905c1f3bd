// Elements of a page. Texts are always text: nothing that comes as data becomes HTML.

/** An element. Attributes that begin with "on" are listeners; null leaves an attribute out. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The text below a figure: a title, and words on the next line. */
export function caption(title, words = "") {
  return el("figcaption", {}, el("b", {}, title), words ? el("br") : "", words);
}

/** The data of the page: the JSON in its `#record`. */
export function pageData() {
  return JSON.parse(document.getElementById("record").textContent);
}
