"""The noise schedule, and where the steps of this run lie on it."""

from __future__ import annotations

from html import escape

import numpy as np

from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model
from pellucid.schedule import Schedule

POINTS = 61

SECTION = Section(40, "loop", "The schedule: how much noise at each step", "Schedule", "how noisy")


def content(model: Model, run: Explanation) -> Content:
    schedule = model.schedule
    t = np.linspace(0, schedule.last_t, POINTS)
    levels = [schedule.level(float(at)) for at in t]
    return Content(
        f"<p>The schedule <code>{escape(schedule.name)}</code> says how much picture (α) and how "
        "much noise (σ) there is at each time t. The network was trained at all of these; a run "
        f"visits {len(run.steps)} of them, from noise to picture. The dots are the steps of this "
        f"run, placed by the spacing <code>{escape(run.request.spacing or '')}</code>; the line is "
        "the present step.</p>",
        "x<sub>t</sub> = α<sub>t</sub> x<sub>0</sub> + σ<sub>t</sub> ε",
        [Schedule.level],
        {
            "t": [round(float(at), 2) for at in t],
            "alpha": [round(level.alpha, 4) for level in levels],
            "sigma": [round(level.sigma, 4) for level in levels],
        },
    )
