// The whole chain at the top: a box for each section, which leads to it.
import { el } from "../../html/modules/elements.js";
import { frame } from "./parts.js";

const STAGES = {
  text: () => "The words, once",
  start: () => "The start",
  loop: (run) => `At each of ${run.count} steps`,
  end: () => "The end, once",
};

export function overview(place, page) {
  const run = page.runs[0];
  for (const [stage, title] of Object.entries(STAGES)) {
    const sections = page.record.sections.filter((section) => section.stage === stage);
    if (!sections.length) continue;
    const boxes = el("ol", {}, ...sections.map((section) => el("li", {}, box(section, run, page))));
    place.append(el("div", { class: `stage-of ${stage}` }, el("h2", {}, title(run)), boxes));
  }
}

function box(section, run, page) {
  const link = el(
    "a",
    { href: `#${section.name}` },
    el("b", {}, `${section.number} ${section.box}`),
    el("small", {}, section.about),
  );
  if (section.picture) {
    const picture = frame(run, "", "");
    page.follow(() => (picture.src = page.stepOf(run)[section.picture] ?? run[section.picture]));
    link.append(picture);
  }
  return link;
}
