import { el } from "../../../html/modules/elements.js";
import { people } from "../../../html/modules/numbers.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const special = (text, note) =>
      el("li", { class: "special" }, el("b", {}, text), el("small", {}, note));
    const list = el("ul", { class: "pieces" });
    page.follow(() =>
      list.replaceChildren(
        special("start", ""),
        ...run.texts[page.stepOf(run).text].map((word) =>
          el(
            "li",
            {},
            el("b", {}, word.text),
            el("small", {}, `number ${word.id}`),
            word.weight === 1 ? "" : el("small", {}, `weight ${people(word.weight)}`),
          ),
        ),
        special("end", "and padding"),
      ),
    );
    card.append(list);
    if (run.several)
      card.append(
        el(
          "p",
          {},
          "This prompt combines several; the words here and in the section about attention are those of the first.",
        ),
      );
    if (run.texts.length > 1)
      card.append(
        el("p", {}, "This prompt changes during the run; these are its words at the current step."),
      );
  });
}
