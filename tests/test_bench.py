"""fedsim bench: the plain loop does our work, processes take turns, who fails is reported, and what is written down."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import cli, data, keyed, models
from fedsim.bench import plain, race, rivals, tables, world
from fedsim.bench.drivers import child, with_fedsim
from fedsim.bench.turns import Gone, Player
from fedsim.bench.workloads import WORKLOADS, Workload
from fedsim.engine.plan import minibatches
from fedsim.report.table import as_markdown

SMALL = {
    "W": Workload("W", "mlp", 159_010, 6, 40, 4, 3, 0.1, 3),
    "G": Workload("G", "logistic", 7_850, 6, 40, 6, 3, 0.1, 3, degree=2),
}


def pictures() -> data.Dataset:
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.integers(0, 256, (240, 1, 28, 28), dtype=np.uint8))
    targets = torch.from_numpy(rng.integers(0, 10, 240))
    return data.Dataset("pictures", inputs, targets, inputs[:50], targets[:50], 10, mean=0.5, std=0.25)


def saved(workload: Workload, folder: Path) -> Path:
    """A workload's folder."""
    world.save_images(pictures(), folder / "images.npz")
    world.save(workload, pictures(), folder / "images.npz", folder / workload.name)
    return folder / workload.name


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", list(SMALL))
def test_the_plain_loop_does_the_same_work(name: str, processes: int, tmp_path: Path) -> None:
    """Given the same minibatches plain PyTorch ends with our models, whoever trains which client."""
    one = child.read(saved(SMALL[name], tmp_path), {})
    task, rounds = with_fedsim.task_of(one), 3

    def order(i: int, t: int) -> Any:
        steps = torch.arange(one.workload["steps"])[None]
        key = keyed.fold(world.SEED, "client", t, torch.tensor([[i]])).expand_as(steps)
        size, first = (part[i].expand_as(steps) for part in (task.size, task.first))
        place, _, _ = minibatches(key, size, first, steps, steps >= 0, one.workload["batch"])
        return task.rows[place][0].numpy()

    memory = plain.shared(one, processes)
    parts = [plain.Part(one, memory, rank, processes, order) for rank in range(processes)]
    ours = with_fedsim.steps(one, {})
    for t in range(rounds):
        model = next(ours).model.reshape(-1, len(one.first))
        for verb in ("train", "finish"):
            for part in parts[::-1]:
                getattr(part, verb)(t)
    theirs = memory.models[rounds % 2]
    moved = (model - torch.from_numpy(one.first)).norm()
    assert (model - theirs).norm() < 1e-5 * moved
    if SMALL[name].gossip:
        assert (theirs - theirs.mean(0)).norm() > 1e-2 * moved


@pytest.mark.parametrize("update", plain.UPDATES)
def test_all_ways_to_update_are_the_same(update: str, tmp_path: Path) -> None:
    one = child.read(saved(SMALL["W"], tmp_path), {})
    memory = plain.shared(one)
    part = plain.Part(one, memory, update=update)
    reference = plain.Part(one, plain.shared(one))
    for each in (part, reference):
        each.train(0)
        each.finish(0)
    assert torch.allclose(memory.models, reference.memory.models, atol=1e-6)
    assert not torch.equal(memory.models[0], memory.models[1])


def test_the_models_are_ours() -> None:
    """Every rival's module is the one of fedsim.models, and has as many parameters as the table says."""
    x = torch.rand(3, 1, 28, 28)
    for workload in WORKLOADS.values():
        flat = torch.from_numpy(world.first(workload.model))
        assert len(flat) == workload.parameters
        if workload.model in models.NAMES:
            both = [child.torch_module(workload.model), models.build(workload.model, (1, 28, 28), 10)]
            for module in both:
                torch.nn.utils.vector_to_parameters(flat, module.parameters())
            assert torch.equal(both[0](x), both[1](x))


def test_a_client_goes_through_its_examples(tmp_path: Path) -> None:
    """Every example once an epoch, in an order of its own, and nobody else's."""
    one = child.read(saved(replace(SMALL["W"], steps=4), tmp_path), {})
    places = one.minibatches(2, np.random.default_rng(0))
    assert places.shape == (4, 20)
    epochs = places.reshape(2, 40)
    assert not np.array_equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert sorted(epoch) == sorted(one.rows[2])
    assert len(set(one.rows.reshape(-1).tolist())) == 240


# Turns ---------------------------------------------------------------------------------------------------------------

FAKE = """
import time, numpy as np
def drive(world, turns):
    turns.model = lambda: world.first {change}
    turns.notes["versions"] = {{"fake": "1"}}
    {start}
    for t in range(99):
        turns.lap()
        {play}
"""


def fake(folder: Path, name: str, play: str = "pass", start: str = "pass", change: str = "") -> rivals.Rival:
    file = folder / f"with_{name}.py"
    file.write_text(FAKE.format(play=play, start=start, change=change))
    return rivals.Rival(name, name.title(), str(file), settings=lambda n: [{"threads": 1}], gossip=(False, True))


def test_processes_that_fail_say_why(tmp_path: Path) -> None:
    def run(code: str, patience: float = 20.0) -> Player:
        return Player([sys.executable, "-c", code], {}, patience)

    dying = run("print('{}', flush=True); input(); raise KeyError('no such thing')")
    assert dying.answer() == {}
    with pytest.raises(Gone, match=r"^exit 1: KeyError: 'no such thing'$"):
        dying.tell("rounds 1")
    with pytest.raises(Gone, match="exit 1"):  # and again
        dying.tell("rounds 1")
    dying.close()
    slow = run("import time; time.sleep(60)", 0.3)
    with pytest.raises(Gone, match=r"^no answer in 0\.3 s$"):
        slow.answer()
    began = time.perf_counter()
    slow._process.kill()
    slow.close()
    assert time.perf_counter() - began < 5
    silent = run("raise SystemExit(3)")
    with pytest.raises(Gone, match="exit 3: it said nothing"):
        silent.answer()
    silent.close()


def test_what_a_contender_starts_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']);"
    player = Player([sys.executable, "-c", code + "print(p.pid, flush=True); input()"], {})
    pid = int(str(player.answer()))
    began = time.perf_counter()
    player.close()
    assert time.perf_counter() - began < 4
    patience = time.monotonic() + 10
    while alive(pid) and time.monotonic() < patience:  # a killed process takes a moment to go
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_rounds_are_timed_with_all_that_descends(tmp_path: Path) -> None:
    """A round's CPU seconds count a child's work; time between rounds counts for nobody."""
    busy = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\ntime.sleep(9)"
    play = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}]); time.sleep(1)"
    rival = fake(tmp_path, "busy", play=play.replace("{", "{{").replace("}", "}}"))
    player = rivals.start(rival, sys.executable, saved(SMALL["W"], tmp_path), {"threads": 1}, {})
    assert player.answer() == {"ready": True}
    time.sleep(1)
    took = player.tell("rounds 1")
    both = player.tell("rounds 2")
    player.close()
    (seconds,) = took["seconds"]
    assert 1 <= seconds < 1.9
    assert len(both["seconds"]) == 2
    assert all(1 <= one < 1.9 for one in both["seconds"])
    assert took["cpu_seconds"] > 0.15 or not Path("/proc/self").exists()


def test_an_order_that_is_none_ends_the_process(tmp_path: Path) -> None:
    """Instead of nothing, for as long as somebody waits for the answer."""
    player = rivals.start(fake(tmp_path, "f"), sys.executable, saved(SMALL["W"], tmp_path), {"threads": 1}, {})
    assert player.answer() == {"ready": True}
    with pytest.raises(Gone, match="there is no order 'round'"):
        player.tell("round")
    player.close()


@pytest.fixture
def racing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Races of fake rivals against a fake us that takes 10 ms."""
    monkeypatch.setattr(rivals, "OURS", fake(tmp_path, "fedsim", "time.sleep(0.01)", "turns.notes['engine'] = 'E'"))
    monkeypatch.setattr(rivals, "memories", lambda: {"": {}, "tuned": {}})

    def measure(*contenders: rivals.Rival, brief: bool = True) -> list[race.Entry]:
        monkeypatch.setattr(rivals, "RIVALS", {rival.name: rival for rival in contenders})
        monkeypatch.setattr(tables, "RIVALS", rivals.RIVALS)
        found: list[race.Entry] = []
        for found in race.measure(
            [SMALL["W"]], contenders, pictures(), tmp_path / "envs", lambda text: None, rounds=4, brief=brief
        ):
            assert json.loads(json.dumps(found)) == found
        return found

    return measure


def test_a_race(racing: Any, tmp_path: Path) -> None:
    """Who is slower is, in its best setting; who dies, never starts or learns something else is said to."""
    mixed = replace(
        fake(tmp_path, "mixed", "time.sleep(0.03 * world.setting['threads'])"),
        settings=lambda n: [{"threads": 2}, {"threads": 1}],
    )
    found = racing(
        mixed,
        fake(tmp_path, "dying", "1 / (3 - t)"),
        fake(tmp_path, "absent", start="import nothing_of_the_kind"),
        fake(tmp_path, "other", change="* 0 + np.arange(len(world.first)) % 7 - 3"),
        brief=False,
    )
    good, dying, absent, other = found
    assert (good["rival_setting"].split(",")[0], good["engine"], good["failed"]) == ("1 thread", "E", None)
    assert 2 < good["ratio"] < 4
    assert good["ratio"] == good["rival_seconds"] / good["seconds"]
    assert set(good["settings"]["mixed"]) == {"2 threads", "2 threads, tuned", "1 thread", "1 thread, tuned"}
    for contender, setting, seconds in (("fedsim", "setting", "seconds"), ("mixed", "rival_setting", "rival_seconds")):
        all_of_it = good["settings"][contender]
        assert good[seconds] == min(one["seconds"] for one in all_of_it.values()) or contender == "fedsim"
        assert good[seconds] == all_of_it[good[setting]]["seconds"]
        assert all(len(one["each"]) == 4 for one in all_of_it.values())
    assert good["same_quality"]
    assert good["versions"] == {"fedsim": {"fake": "1"}, "mixed": {"fake": "1"}}
    assert dying["ratio"] is None
    assert dying["failed"] == "round 4: exit 1: ZeroDivisionError: division by zero"
    assert absent["failed"] == "exit 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"
    assert not other["same_quality"]
    shown = "\n".join(tables.lines(found))
    for text in (dying["failed"], absent["failed"], "accuracies are further apart than 0.02", "6 clients a round"):
        assert text in shown
    assert "ZeroDivisionError" in as_markdown(tables.table(found))


def test_turns_are_of_a_few_rounds(racing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warming up alternates, then each plays its stint; nobody plays more rounds than the others."""
    order: list[str] = []
    tell = race.Player.tell

    def told(self: Any, command: str) -> Any:
        if command.startswith("rounds "):
            order.extend(int(command.removeprefix("rounds ")) * [str(id(self))])
        return tell(self, command)

    monkeypatch.setattr(race.Player, "tell", told)
    monkeypatch.setitem(SMALL, "W", replace(SMALL["W"], stint=3))
    (entry,) = racing(fake(tmp_path, "other"))
    assert entry["failed"] is None
    names = {name: "ab"[at] for at, name in enumerate(dict.fromkeys(order))}
    assert "".join(names[one] for one in order) == "abbaaaabbbba"


def test_an_environment_that_cannot_be_made_is_reported(
    racing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> None:
        asked.append(command)
        if "absent==1" in command:
            raise RuntimeError("its environment cannot be made: no such package")

    monkeypatch.setattr(rivals, "_run", run)
    (entry,) = racing(replace(fake(tmp_path, "absent"), needs=(("absent==1",),)))
    assert entry["failed"] == "its environment cannot be made: no such package"
    assert entry["rival"] == "absent"
    version = torch.__version__.partition("+")[0]
    assert [command[-2:] for command in asked[1:]] == [[f"torch=={version}", "numpy"], ["numpy", "absent==1"]]


def test_environments_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew when what they need has changed."""
    made: list[str] = []

    def run(command: list[str]) -> None:
        if "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
            made.append(command[-1])

    monkeypatch.setattr(rivals, "_run", run)
    rival = replace(fake(tmp_path, "one"), needs=(("a==1", "b"), ("a==1", "c")))
    both = [str(tmp_path / name / "bin" / "python") for name in ("one", "one-1")]
    assert rivals.environments(rival, tmp_path, print) == both
    assert rivals.environments(rival, tmp_path, print) == both
    assert len(made) == 2
    rivals.environments(replace(rival, needs=(("a==2", "b"), ("a==1", "c"))), tmp_path, print)
    assert len(made) == 3


def test_settings_have_names() -> None:
    """Different ones, and everybody who names environments has them."""
    for rival in (*rivals.RIVALS.values(), rivals.OURS):
        for cores in (1, 2, 8):
            settings = rival.settings(cores)
            names = [rivals.label(rival, setting) for setting in settings]
            assert len(set(names)) == len(names)
            assert all(setting.get("environment", 0) < max(len(rival.needs), 1) for setting in settings)
            assert all("8" not in name.split(",")[0] for name in names) or cores == 8
    assert rivals.label(rivals.RIVALS["fedjax"], {"backend": "jit", "environment": 1}, "x") == "jit, jax==0.10.2, x"
    assert rivals.label(rivals.OURS, {"threads": 1}) == "1 thread"


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "line"), [
    (["--workloads", "W1,W9"], "workload 'W9' is not known"),
    (["--rivals", "flowr"], "rival 'flowr' is not known; did you mean 'flower'?"),
    (["--workloads", "W1", "--rivals", "gossipy"], "gossipy runs gossip only, and none of W1 is that"),
    (["--workloads", "G1", "--rivals", "pfl,plain"], "pfl runs a server only, and none of G1 is that"),
    (["--workloads", ","], "name at least one workload and one rival"),
    (["--quick", "--json", "nowhere/at/all.json"], "nowhere/at/all.json cannot be written: there is no folder"),
    (["--quick", "--data-dir", "nowhere"], "data fashion-mnist is not in"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedsim: {line}")
    assert len(said.splitlines()) == 1


def test_a_quick_look(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way with the real contenders: nothing to install, and the same accuracy."""
    file, page = tmp_path / "found.json", tmp_path / "found.md"
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--quick", "--workloads", "W1", "--json", str(file), "--markdown", str(page),
                  "--data-dir", str(data_dir)])  # fmt: skip
    assert ended.value.code == 0
    (entry,) = json.loads(file.read_text())
    assert {"workload", "engine", "rival", "ratio", "seconds", "rival_seconds", "compile_seconds", "versions"} <= set(
        entry
    )
    assert (entry["workload"], entry["rival"], entry["failed"]) == ("W1", "plain", None)
    assert math.isclose(entry["ratio"], entry["rival_seconds"] / entry["seconds"])
    for name in ("seconds", "rival_seconds", "cpu_seconds", "rival_cpu_seconds", "peak_mb", "rival_peak_mb"):
        assert entry[name] > 0
    assert entry["compile_seconds"] >= 0
    assert entry["engine"]
    assert min(entry["accuracy"], entry["rival_accuracy"]) > 0.6
    assert entry["versions"]["plain"]["torch"] == torch.__version__
    assert "| W1 | plain PyTorch | 1 thread |" in page.read_text()
    assert "plain PyTorch" in capsys.readouterr().out
