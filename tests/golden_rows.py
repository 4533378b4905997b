"""One small pinned row for every function whose numbers are stored: numbers that change without a version are noticed.

    PYTHONPATH=tests python -m golden_rows            writes rows of new functions and of raised versions
    PYTHONPATH=tests python -m golden_rows --check    says what differs, and writes nothing
    PYTHONPATH=tests python -m golden_rows hump       the same for one function, or `notebooks`, in seconds

A row of which only the numbers changed is never rewritten: raise the version of its function first. Everything runs in
float64, so that processors differ in digits far behind the tolerance. Functions that stand in a notebook's own cells
cannot be called from here; their code is pinned instead, without its comments and docstring.
"""

import ast
import contextlib
import hashlib
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import attrobust
import cases
import numpy as np
import pandas as pd
import torch
from attrobust import (
    attacks,
    attention,
    attributions,
    audit,
    data,
    experiments,
    models,
    paths,
    regularizers,
    robustness,
    sensitivity,
    training,
)
from attrobust.attacks import streams
from attrobust.audit import trial
from attrobust.balls import Ball
from attrobust.experiments import explanations, measure
from attrobust.studies import (
    across_models,
    explicit_regularizers,
    interpretable_gradients,
    kernel_attention,
    photographs,
    softmax_entropy,
    two_curvatures,
)
from attrobust.theory import duality, path_norm, stability, traps
from attrobust.versions import VERSIONED

FOLDER = Path(__file__).parent / "golden"
#: How a complaint ends that this program itself can end.
AGAIN = "run `PYTHONPATH=tests python -m golden_rows`"
RELATIVE, ABSOLUTE = 1e-6, 1e-9
#: Where processors differ more: initial weights are drawn in float32 and then trained; zeros that are float32 rounding.
LOOSE = {"train": (1e-3, 1e-4), "drop_in": (1e-3, 1e-5), "twins": (1e-6, 1e-6), "scales": (1e-6, 1e-6)}

#: Functions whose golden row has a column for every member of a registry: another member may join.
GROWING = ("kernel",)

SMALL = experiments.Measurement(radii=(8,), effort=attacks.Effort(steps=2, restarts=1), n_attacked=3, trace_products=6)
DENSE = {"dataset": "digits", "side": 4, "n_train": 24, "step_size": 0.1, "batch_size": 8, "epochs": 3, "seed": 0}
ATTACK = {"radius": 8, "seed": 0}


def experiment(**changes: object) -> experiments.Experiment:
    return experiments.Experiment(**DENSE | {"protocol": "standard"} | changes)


TRANSFORMER = experiment(architecture="vit", dim=8, depth=1, side=None, attention="gaussian")


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Data and untrained networks of experiments in float64."""
    plain, build, vit = data.load, measure.build, kernel_attention.small_vit

    def dataset(name: str, side: int | None, n_train: int, n_test: int | None, device: str) -> data.Dataset:
        found = plain(name, side=side, n_train=n_train, n_test=n_test, device=device)
        sides = {
            part: data.Examples(getattr(found, part).x.double(), getattr(found, part).y) for part in ("train", "test")
        }
        return found._replace(**sides)

    kernel_attention._original.cache_clear()
    with (
        mock.patch.object(measure, "dataset", dataset),
        mock.patch.object(kernel_attention, "dataset", dataset),
        mock.patch.object(measure, "build", lambda e, device="cpu": build(e, device).double()),
        mock.patch.object(kernel_attention, "small_vit", lambda *of, **how: vit(*of, **how).double()),
    ):
        yield
    kernel_attention._original.cache_clear()


def small() -> data.Dataset:
    return measure.dataset("digits", 4, 24, 3, "cpu")


def network(e: experiments.Experiment) -> torch.nn.Module:
    return cases.filled(measure.build(e), 0)


def vit(name: str = "gaussian") -> torch.nn.Module:
    return cases.vit(attention=name).requires_grad_(False)


def images(n: int = 3) -> torch.Tensor:
    return cases.images(n, shape=cases.VIT_SHAPE)


def loaded() -> pd.DataFrame:
    found = data.load("digits", side=4, n_train=12, n_test=6)
    return pd.DataFrame(torch.cat([found.train.x, found.test.x]).flatten(1).double().numpy()).add_prefix("pixel ")


def kernels() -> pd.DataFrame:
    q, k = (torch.randn(1, 1, 3, 4, generator=cases.generator(s), dtype=torch.float64) for s in (0, 1))
    return pd.DataFrame({name: attention.kernel(name)(q, k).flatten().numpy() for name in attention.KERNELS})


def trained() -> pd.DataFrame:
    columns = {}
    for e in (experiment(), experiment(protocol="matched", activation="relu"), TRANSFORMER):
        (model,), (fit,) = measure.train([e])
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        name = f"{e.architecture} {e.protocol}"
        columns[name] = [fit.steps, fit.train_loss, weights.norm().item(), *weights[:: len(weights) // 5][:5].tolist()]
    return pd.DataFrame(columns)


def measured() -> pd.DataFrame:
    parts = []
    for e in (experiment(activation="relu"), TRANSFORMER):
        fit = training.Fit(steps=3, train_loss=0.5, train_accuracy=0.5, late_change=0.05)
        row, attacked = measure.measure(e, SMALL, network(e), fit)
        parts += [
            pd.DataFrame([{k: v for k, v in row.items() if k != "reason"}]),
            attacked.assign(reason=row["reason"]),
        ]
    return pd.concat(parts, ignore_index=True)


def flatness() -> dict[str, float]:
    examples = small().train
    return measure._flatness(network(experiment()), examples, SMALL, 0)


def input_side() -> dict[str, float]:
    return measure._input_side(network(experiment()), small().test.x, 0)


def robust() -> pd.DataFrame:
    model, x = cases.mlp(), cases.images(3)
    how = {"attributions": {"saliency": attributions.saliency}, "ball": Ball("linf", 8 / 255), "k": 2}
    return robustness.attribution_robustness(model, x, **how, effort=SMALL.effort, generator=cases.generator())


def sensitive() -> pd.DataFrame:
    how = {"ball": Ball("linf", 0.1), "draws": 3, "generator": cases.generator()}
    return sensitivity.sensitivities(cases.mlp(), attributions.saliency, cases.images(3), **how)


def suite() -> pd.DataFrame:
    effort = attacks.Effort(steps=2, restarts=1, draws=2, walk=2)
    how = {"k": 2, "effort": effort, "generator": cases.generator()}
    return attacks.auto(attributions.saliency, cases.mlp(), cases.images(2), Ball("linf", 8 / 255), **how).table


def judge_of_strength() -> pd.DataFrame:
    how = {"k": 2, "effort": attacks.Heavy(steps=3, starts=1), "generator": cases.generator()}
    return attacks.heavy(attributions.saliency, cases.mlp(), cases.images(2), Ball("linf", 8 / 255), **how).table


def of_feature_maps() -> pd.DataFrame:
    model = models.build("convnet_bn", input_shape=cases.VIT_SHAPE, classes=3, seed=0, width=2).double().eval()
    x = images(2)
    return pd.DataFrame({"map": explanations.last_maps(model, x, torch.tensor([0, 1])).flatten().tolist()})


def penalised(name: str) -> pd.DataFrame:
    penalty = regularizers.PENALTIES[name]
    given = {"generator": cases.generator()} if streams.stochastic(penalty) else {}
    given |= {"wanted": cases.images(seed=1) - 0.5} if streams.waits_for(penalty, "wanted") else {}
    return pd.DataFrame({"penalty": penalty(cases.conv(), cases.images(), cases.labels(), **given).tolist()})


def wanted() -> pd.DataFrame:
    x, y = cases.images(), cases.labels()
    how = {"samples": 3, "threshold": 0.5}
    maps = {
        kind: regularizers.wanted_maps(cases.conv(), x, y, kind=kind, generator=cases.generator(), **how).flatten()
        for kind in regularizers.WANTED
    }
    return pd.DataFrame({kind: found.numpy() for kind, found in maps.items()})


def lost(name: str) -> pd.DataFrame:
    logits = torch.randn(3, cases.CLASSES, generator=cases.generator(), dtype=torch.float64)
    return pd.DataFrame(
        {f"smoothed {s}": training.LOSSES[name](logits, cases.labels(), label_smoothing=s) for s in (0.0, 0.1)}
    )


def augmented(name: str) -> pd.DataFrame:
    changed = training.AUGMENTATIONS[name](cases.images(8), 1, cases.generator())
    return pd.DataFrame(changed.flatten(1).numpy()).add_prefix("pixel ")


def scheduled(name: str) -> pd.DataFrame:
    recipe = training.Recipe(step_size=0.1, batch_size=1, epochs=4, schedule=name)
    return pd.DataFrame({"step": [recipe.step(update, per_epoch=3) for update in range(12)]})


def updated(name: str) -> pd.DataFrame:
    how = {"penalty": "input_gradient", "strength": 0.1, "trainer": name}
    how |= {} if name == "sgd" else {"radius": 0.1}
    recipe, model = training.Recipe(step_size=0.1, batch_size=3, epochs=2, **how), cases.conv()
    training.fit([model], cases.images(), cases.labels(), recipe, generators=[cases.generator()])
    return pd.DataFrame({"weight": torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()})


def explained(name: str) -> pd.DataFrame:
    how = {"on_patches": {"attribution": attributions.saliency, "patch": 2}, "integrated_gradients": {"steps": 4}}
    how |= {"occlusion": {"patch": 2}, "smooth_grad": {"sigma": 0.1, "samples": 3}}
    how |= {"uniform_grad": {"ball": Ball("linf", 0.1), "samples": 3}}
    model = network(experiment()).double() if name in ("deep_lift", "lrp") else vit()
    drawn = {"generator": torch.Generator().manual_seed(0)} if name.endswith("_grad") else {}
    x = experiments.shown(experiment(), 2).x.double() if name in ("deep_lift", "lrp") else images(2)
    found = getattr(attributions, name)(model, x, cases.labels(2), **how.get(name, {}), **drawn)
    return pd.DataFrame(found.detach().flatten(1).numpy()).add_prefix("pixel ")


def untimed(table: pd.DataFrame) -> pd.DataFrame:
    named = table.drop(columns=["seconds", "wall"], errors="ignore")
    return named.sort_values([*named], ignore_index=True)


def of_students(function: Callable, *arguments: object) -> pd.DataFrame:
    """What notebook 10 measures on networks that are not trained, a teacher's and its student's."""
    fields = {"penalty": "interpretation", "strength": 0.1, "wanted": "gradient"}
    return function(experiment(**fields), *arguments, network=network)


def predictions_attacked(attack: Callable, **effort: int) -> pd.DataFrame:
    """The images that an attack on predictions ends with, for networks that are not trained."""
    e = experiment()
    x, y = experiments.shown(e, 3)
    found = attack(network(e), x, y, Ball("l2", 0.05), generator=torch.Generator().manual_seed(0), **effort)
    return pd.DataFrame(found.x.flatten(1).numpy()).add_prefix("pixel ")


def audited() -> pd.DataFrame:
    """One map of a network that is not trained."""
    e = experiment()
    x, _ = experiments.shown(e, 3)
    how = {"ball": Ball("linf", 0.02), "k": 3, "effort": SMALL.effort, "generator": torch.Generator().manual_seed(0)}
    return audit.attacked(network(e), x, attributions.saliency, others=x.roll(-1, 0), draws=2, **how).table


def looked_at(function: Callable) -> pd.DataFrame:
    """What an audit measures of a network that is not trained, beside attacks."""
    e = experiment()
    return function(network(e), experiments.shown(e, 3).x, {"saliency": attributions.saliency}, seed=0)


def trained_on() -> pd.DataFrame:
    """A copy of a small network after two updates, one after two with decay, and the network itself, under attack."""
    e = experiment()
    x, y = experiments.shown(e, 20)
    how = {"ways": ["weight decay"], "epochs": 1, "step_size": 0.01, "batch_size": 8, "radius": 0.02, "leading": 0.1}
    how |= {"name": "saliency", "readout": "logit", "train": x, "labels": y, "y": y[:3], "effort": SMALL.effort}
    return audit.retrained(network(e), x[:3], {}, seed=0, **how)


def tried() -> pd.DataFrame:
    """Another map and a copy of a network that is not trained, on four images, as if an audit had advised both."""
    uses = {"map": "input_x_gradient", "training": "weight decay"}
    advice = [audit.Advice(about, "", 0.0, 0.0, 0.0, 4, use) for about, use in uses.items()]
    with mock.patch.object(trial, "advise", lambda *args, **how: advice):
        return audit.followed(experiment(), 4, SMALL.effort, maps=["input_x_gradient"], network=network)


MAPS = {"maps": explanations.compared(2, ("saliency", "raw_attention", "relevance"), ("logit", "log_probability"))}
DROP_IN = {"n_train": 30, "n_attacked": 2, "epochs": 2, "step_size": 0.02, "radius": 8}
DROP_IN |= {"most": 2, "last": 2, "margin": 0.01}


def untrained(function: Callable) -> pd.DataFrame:
    """What notebook 04 measures on a trained network, on one that is not."""
    return function(experiment(), ["saliency", "input_x_gradient"], 8, SMALL.effort, 3, network=network)


def smoothed_photograph() -> pd.DataFrame:
    """Of images of noise, by a small network."""
    size = {"input_shape": (3, 8, 8), "classes": 3, "width": 4, "seed": 0}
    model = models.build("convnet", **size).double().eval().requires_grad_(False)
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with (
        mock.patch.object(models, "EfficientNetLite0", lambda: model),
        mock.patch.object(data, "photographs", lambda names: (noise * (1 + len(names[0]))) % 1),
    ):
        return photographs.smoothed_photograph("cat", 8.0, 2)


#: A small call of every versioned function.
CASES: dict[str, Callable[[], object]] = {
    "load": loaded,
    "kernel": kernels,
    "train": trained,
    "measure": measured,
    "_flatness": flatness,
    "_input_side": input_side,
    "inside": lambda: explanations.inside(vit(), images(), patch=2, k=2),
    "margins": lambda: explanations.margins(vit("softmax"), images(2), k=2),
    "under_attack": lambda: explanations.under_attack(vit(), images(2), k=1, effort=SMALL.effort, **ATTACK, **MAPS),
    "controls": lambda: explanations.controls(vit(), images(3), patch=2, **MAPS),
    "_size": lambda: measure._size(network(experiment()), measure.build(experiment()), small().train),
    "attribution_robustness": robust,
    "sensitivities": sensitive,
    "auto": suite,
    "heavy": judge_of_strength,
    "last_maps": of_feature_maps,
    "wanted_maps": wanted,
    "transferred": partial(untrained, across_models.transferred),
    "largest_stable": lambda: across_models.largest_stable(experiment(protocol="early"), 0.1, 200),
    "seconds": lambda: untimed(explicit_regularizers.seconds(["natural", "SSR"], "mlp digits", 1)),
    "smoothed_bends": partial(
        explicit_regularizers.smoothed_bends, experiment(), [0.1, 0.4], [2, 5], 3, network=network
    ),
    "smoothed_photograph": smoothed_photograph,
    "relevance_mass": partial(untrained, across_models.relevance_mass),
    "pgd": partial(predictions_attacked, attacks.pgd, steps=3),
    "square": partial(predictions_attacked, attacks.square, queries=50),
    "right_under_attack": partial(
        of_students,
        interpretable_gradients.right_under_attack,
        attacks.pgd,
        [("linf", 0.02), ("l2", 0.1)],
        20,
        {"steps": 3, "restarts": 1},
        "test",
    ),
    "attacked": audited,
    "worth": partial(looked_at, audit.worth),
    "retrained": trained_on,
    "followed": tried,
    "turns": partial(looked_at, audit.turns),
    "attended": lambda: audit.attended(vit(), images(), {}, seed=0),
    "gradients_like": partial(of_students, interpretable_gradients.gradients_like, 3),
    "pictured": partial(of_students, interpretable_gradients.pictured, 2),
    "read_out_twice": lambda: kernel_attention.read_out_twice(vit(), images(2), **ATTACK, steps=2, restarts=1),
    "drop_in": lambda: kernel_attention.drop_in(["gaussian"], 0, **DROP_IN, effort=attacks.Effort(steps=1, restarts=1)),
    "training_steps": lambda: untimed(kernel_attention.training_steps(["l2"], 14, 8, 1, 2, 1)),
    "mixing": lambda: untimed(kernel_attention.mixing(["l2"], [4], 4, 1)),
    "diversities": partial(softmax_entropy.diversities, [0.01, 1.0], [0]),
    "stability_sides": partial(two_curvatures.stability_sides, 0, [0.5, 1.5], 5),
    "thresholds": partial(two_curvatures.thresholds, 0, [1, 4]),
    "sweep": partial(path_norm.sweep, 60, [0]),
    "orders": partial(stability.orders, [0], [0.1, 0.05]),
    "attained": two_curvatures.attained,
    "attained_by_rows": softmax_entropy.attained_by_rows,
    "attained_by_kernels": kernel_attention.attained_by_kernels,
    "evidence_sweep": partial(kernel_attention.evidence_sweep, [0.0, 2.0], 9, [0]),
    "detector": partial(duality.detector, [0.0, 0.5]),
    "learning_digits": partial(two_curvatures.learning_digits, 40, 1, 0),
    "blind_unit": partial(two_curvatures.blind_unit, 20, 1, 0, [0.0, 10.0]),
    "one_factor": partial(two_curvatures.one_factor, 0, [0.5, 2.0]),
    "line_numbers": partial(two_curvatures.line_numbers, 60, [0.05], [0]),
    "line_pictures": partial(two_curvatures.line_pictures, 60, [0.05], 0),
    "link_curves": partial(kernel_attention.link_curves, 4.0, 9),
    "scale_sweep": partial(kernel_attention.scale_sweep, [0.1, 10.0], 9, [0]),
    "scales": partial(traps.scales, [0], [0.1, 1.0]),
    "fading": partial(two_curvatures.fading, 40, 2, 0, "cross_entropy"),
    "certified": partial(two_curvatures.certified, 40, 2, 2, 2, 1, [0.1], 0),
    "twins": partial(traps.twins, [0], [1.0, 10.0]),
    "landscape": partial(softmax_entropy.landscape, 0, 9, 2),
    "landscape_limits": partial(softmax_entropy.landscape_limits, 9, 2),
    "slopes": partial(softmax_entropy.slopes, [0.5, 2.0], 9, [0]),
    "temperatures": partial(softmax_entropy.temperatures, [0.5, 2.0], 9, [0]),
    "swap_radii": partial(kernel_attention.swap_radii, 3, 0),
}


#: Sides of statements on random cases: (number of cases, first case).
OVER_CASES = (
    "angles", "batches", "ceilings", "distances", "floors", "hump", "identities", "loss_gradients", "metrics", "nudged",
    "one_score", "paths", "radii", "rank_orders", "readouts", "rescaled", "rescaling", "same_ranks", "scaled",
    "shared_maps", "smoothed", "stable", "surfaces", "swapped", "transfer", "transformers", "turning",
)  # fmt: skip
CASES |= {name: partial(lambda n: versioned()[n](1, 0), name) for name in OVER_CASES}
#: What a recipe names, and attributions, where they are versioned.
NAMED = [
    (penalised, regularizers.PENALTIES), (lost, training.LOSSES), (augmented, training.AUGMENTATIONS),
    (scheduled, training.SCHEDULES), (updated, training.TRAINERS),
    (explained, {name: getattr(attributions, name) for name in attributions.__all__}),
]  # fmt: skip
CASES |= {
    function.__name__: partial(case, name)
    for case, functions in NAMED
    for name, function in functions.items()
    if hasattr(function, "version")
}


def versioned() -> dict[str, Callable]:
    """Every versioned function of the library, whichever module it stands in."""
    for module in pkgutil.walk_packages(attrobust.__path__, "attrobust."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {name: function for name, function in VERSIONED.items() if function.__module__.startswith("attrobust.")}


def row(name: str) -> dict[str, object]:
    """What a function gives today: rows counted, and of each column the mean and a few entries."""
    with double(), torch.random.fork_rng(devices=[]):
        found = CASES[name]()
    table = found if isinstance(found, pd.DataFrame) else pd.DataFrame([found])
    chosen = np.unique(np.linspace(0, len(table) - 1, 7).round().astype(int))
    columns = {}
    for column in table:
        values = table[column]
        if values.map(lambda v: isinstance(v, str)).any():
            columns[str(column)] = {"texts": [str(v) for v in values.iloc[chosen]]}
        else:
            numbers = values.astype(float)
            columns[str(column)] = {"mean": numbers.mean(), "values": numbers.iloc[chosen].tolist()}
    return {"rows": len(table), "columns": columns}


def difference(name: str, version: int, found: dict, pinned: dict | None) -> str:
    """What is wrong between today's row and the pinned one, as a sentence; "" if nothing is."""
    if pinned is None:
        return f"{name!r} is versioned and has no golden row: {AGAIN}"
    if pinned["version"] != version:
        return f"{name!r} has version {version} and a golden row of version {pinned['version']}: {AGAIN}"
    added = _joined(name, found, pinned)
    known = found | {"columns": {column: part for column, part in found["columns"].items() if column not in added}}
    changed = _changed(known, pinned["row"], *LOOSE.get(name, (RELATIVE, ABSOLUTE)))
    if not changed:
        return f"{name!r} has no golden row of {', '.join(added)} yet: {AGAIN}" if added else ""
    return (
        f"the numbers of {name!r} changed and its version did not ({changed}): raise it to @versioned({version + 1})"
        f" and {AGAIN}, or undo the change"
    )


def _joined(name: str, found: dict, pinned: dict) -> list[str]:
    """Columns of a growing row that are not pinned yet."""
    return [column for column in found["columns"] if column not in pinned["row"]["columns"]] if name in GROWING else []


def _changed(found: dict, pinned: dict, relative: float, absolute: float) -> str:
    if found["rows"] != pinned["rows"] or list(found["columns"]) != list(pinned["columns"]):
        return f"{found['rows']} rows of {list(found['columns'])}, pinned {pinned['rows']} of {list(pinned['columns'])}"
    for column, new in found["columns"].items():
        old = pinned["columns"][column]
        if set(new) != set(old) or new.get("texts") != old.get("texts"):
            return f"column {column!r}"
        for part in ("mean", "values") if "mean" in new else ():
            a, b = (np.atleast_1d(np.array(v[part], dtype=float)) for v in (new, old))
            if not np.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True):
                return f"column {column!r}, {part} {a.tolist()}, pinned {b.tolist()}"
    return ""


def pinned(name: str) -> dict | None:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


# ---------------------------------------------------------------------- functions of notebooks


def stored_functions(path: Path) -> dict[str, dict[str, object]]:
    """Version and code of every function of a notebook's own cells whose tables it stores."""
    cells = json.loads(path.read_text())["cells"]
    body = [n for c in cells if c["cell_type"] == "code" for n in ast.parse("".join(c["source"])).body]
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    found = {}
    for call in (node for part in body for node in ast.walk(part) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) not in ("experiments.table", "experiments.tables"):
            continue
        name = ast.unparse(call.args[2])
        if name in functions:
            versions = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "version"]
            found[name] = {"version": versions[0] if versions else None, "code": _code(name, functions)}
    return found


def _code(name: str, functions: dict[str, ast.FunctionDef]) -> str:
    """Digest of a function's code and of those it calls by name, without docstrings."""
    todo, texts = [name], {}
    while todo:
        current = todo.pop()
        node = functions[current]
        documented = ast.get_docstring(node) is not None
        texts[current] = [ast.dump(node.args), *[ast.dump(part) for part in node.body[documented:]]]
        called = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        todo += sorted((called & set(functions)) - set(texts) - set(todo))
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]


def notebook_difference(where: str, found: dict, pinned_: dict | None) -> str:
    """What is wrong between the code of a notebook's function and the pinned one; "" if nothing is."""
    if pinned_ is None or pinned_["version"] != found["version"]:
        return f"{where} is stored with version {found['version']}, which is not pinned yet: {AGAIN}"
    if pinned_["code"] != found["code"]:
        return (
            f"the code of {where} changed and its version did not: if its numbers change, raise version="
            f"{found['version']} where it is stored and {AGAIN}; if they do not, {AGAIN} --same"
        )
    return ""


def notebook_functions() -> dict[str, dict[str, object]]:
    return {
        f"{path.stem}: {name}": entry
        for path in sorted(paths.notebooks.glob("[0-9]*.ipynb"))
        for name, entry in stored_functions(path).items()
    }


def main(arguments: list[str]) -> int:
    """Write what is new; complain about the rest."""
    functions, complaints = versioned(), []
    asked = [argument for argument in arguments if not argument.startswith("--")]
    for name in sorted(set(asked or functions) - {"notebooks"}):
        if name not in functions or name not in CASES:
            lacks = "case: add a small call to CASES" if name in functions else "version: write @versioned(1) above it"
            complaints.append(f"{name!r} has no {lacks}")
            continue
        version, found = functions[name].version, row(name)
        wrong = difference(name, version, found, pinned(name))
        if wrong.endswith(AGAIN) and "--check" not in arguments:
            FOLDER.mkdir(exist_ok=True)
            text = json.dumps({"version": version, "row": found}, indent=1)
            (FOLDER / f"{name}.json").write_text(text + "\n")
            print(f"{name}: written, version {version}")
        elif wrong:
            complaints.append(wrong)
    file = FOLDER / "notebooks.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    for where, entry in notebook_functions().items():
        wrong = notebook_difference(where, entry, known.get(where))
        raised = known.get(where, {}).get("version") != entry["version"]
        if wrong and "--check" not in arguments and (raised or "--same" in arguments):
            known[where] = entry
            print(f"{where}: pinned, version {entry['version']}")
        elif wrong:
            complaints.append(wrong)
    known = {where: known[where] for where in notebook_functions() if where in known}
    if "--check" not in arguments:
        file.write_text(json.dumps(known, indent=1) + "\n")
    print("\n".join(complaints) or "nothing else differs")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
