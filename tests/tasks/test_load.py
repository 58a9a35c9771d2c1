"""Naming a task: built-in ones, a user's own file, and one line for everything that can be wrong with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from autocomp.errors import RequestError, TaskError
from autocomp.task import Metric, Score, Task
from autocomp.tasks.check import check_task
from autocomp.tasks.listing import listed_tasks
from autocomp.tasks.load import builtin_tasks, load, load_task, model_tasks, short_name, task_seen_from
from autocomp.tasks.mnist import FOLDERS as MNIST_FOLDERS
from autocomp.tasks.user_file import modules_of_user

OWN = '''\
"""A line fitted to noise-free points, scored by its mean squared error."""
import numpy as np
import torch

from autocomp.task import Metric, Score, Task

x = torch.linspace(-1, 1, 64).unsqueeze(1)
y = 3 * x + 1
SPLITS = {"search": slice(16, 40), "test": slice(40, 64)}

def evaluate(predict, split, fraction=1.0):
    part = SPLITS[split]
    errors = (predict(x[part]) - y[part]).square().mean(dim=1)
    return Score(float(errors.mean()), errors.numpy().astype(np.float64))

def task():
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(3.0), model.bias.fill_(1.5)
    return Task("line", model, (x[:1],), [(x[:16],)], evaluate, Metric("squared error", "minimize"))
'''

Writer = Callable[[str], Path]


@pytest.fixture
def own(tmp_path: Path) -> Writer:
    def write(text: str) -> Path:
        path = tmp_path / "mytask.py"
        path.write_text(text)
        return path

    return write


def _error_of(name: str) -> str:
    """The one line that a wrong name is answered with; a request error, so exit code 2."""
    with pytest.raises(TaskError) as caught:
        load_task(name)
    assert isinstance(caught.value, RequestError)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_name_is_the_embedded_task(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    x = torch.ones(1, 2)
    stand_in = Task("small", torch.nn.Linear(2, 2), (x,), [(x,)], lambda *_: Score(1.0))

    def embedded(progress: Callable[[str], None] | None, data: Path | None) -> Task:
        assert progress is not None
        assert data is None
        progress("here")
        return stand_in

    monkeypatch.setattr("autocomp.tasks.load._digits", embedded)
    assert load_task(None, said.append) is stand_in
    assert load_task("digits", said.append) is stand_in
    assert said == ["here", "here"]


def test_the_embedded_task_is_among_the_built_in_ones() -> None:
    assert "digits" in builtin_tasks()
    with pytest.raises(TypeError):
        builtin_tasks()["more"] = builtin_tasks()["digits"]  # type: ignore[index]


def test_listing_the_tasks_loads_no_torch() -> None:
    code = (
        "import sys; from autocomp.tasks.load import builtin_tasks; builtin_tasks(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_users_file_gives_its_task(own: Writer) -> None:
    task = load_task(str(own(OWN)))
    assert task.name == "line"
    assert task.metric == Metric("squared error", "minimize")
    score = check_task(task)
    assert score.value == pytest.approx(0.25)
    assert score.outcomes is not None
    assert score.outcomes.shape == (24,)


def test_another_function_can_be_named(own: Writer) -> None:
    path = own(OWN + '\ndef other():\n    from dataclasses import replace\n    return replace(task(), name="other")\n')
    assert load_task(f"{path}:other").name == "other"
    assert load_task(f"{path}:task").name == "line"


def test_an_object_with_a_tasks_fields_will_do(own: Writer) -> None:
    path = own(
        OWN
        + "\ndef loose():\n    from types import SimpleNamespace\n"
        + "    return SimpleNamespace(name='loose', model=torch.nn.Identity(), example_inputs=(x[:1],),\n"
        + "                           calibration=[(x[:16],)], evaluate=evaluate)\n"
    )
    task = load_task(f"{path}:loose")
    assert isinstance(task, Task)
    assert task.train is None
    assert task.metric == Metric("accuracy")
    assert np.isfinite(check_task(task).value)


def test_a_file_may_import_its_neighbours(own: Writer, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mytask.py").write_text("NAME = 'from next door'\n")
    late = "\ndef late():\n    import neighbour_of_mytask\n    from dataclasses import replace\n"
    path = own(OWN + late + "    return replace(task(), name=neighbour_of_mytask.NAME)\n")
    before = list(sys.path)
    try:
        assert load_task(f"{path}:late").name == "from next door"
    finally:
        sys.modules.pop("neighbour_of_mytask", None)
    assert sys.path == before


def test_what_a_file_imports_from_folders_below_its_own_goes_where_it_goes(own: Writer, tmp_path: Path) -> None:
    for package in ("nets_of_mytask", "site-packages/installed_by_mytask"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("from .inner import NAME\n")
        (tmp_path / package / "inner.py").write_text("NAME = 'from below'\n")
    start = "import sys\nsys.path.insert(1, sys.path[0] + '/site-packages')\n"
    path = own(start + "from nets_of_mytask import NAME\nimport installed_by_mytask\nsys.path.pop(1)\n" + OWN)
    try:
        load_task(str(path))
        found = {module.__name__ for module in modules_of_user()}
    finally:
        for name in [
            name for name in sys.modules if name.partition(".")[0] in {"nets_of_mytask", "installed_by_mytask"}
        ]:
            del sys.modules[name]
    assert {"nets_of_mytask", "nets_of_mytask.inner"} <= found
    assert not any("installed_by_mytask" in name or name.startswith("autocomp.") for name in found)


def test_a_task_is_found_from_another_folder(own: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(OWN)
    (tmp_path / "net").mkdir()
    (tmp_path / "w.pth").touch()
    names = ["mytask.py:task", "hf:net", "torchvision:resnet18@w.pth"]
    monkeypatch.chdir(tmp_path)
    assert [task_seen_from(Path("/nowhere"), name) for name in names] == names
    monkeypatch.chdir("/")
    there = [f"{path}:task", f"hf:{tmp_path}/net", f"torchvision:resnet18@{tmp_path}/w.pth"]
    assert [task_seen_from(tmp_path, name) for name in names] == there
    others = ["digits", "hf:neither", str(path), "none.py"]
    assert [task_seen_from(tmp_path, name) for name in others] == others


def test_two_files_of_one_name_are_two_tasks(own: Writer, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "mytask.py"
    other.parent.mkdir()
    other.write_text(OWN.replace('"line"', '"other line"'))
    assert [load_task(str(path)).name for path in (own(OWN), other)] == ["line", "other line"]


def test_dataclasses_with_deferred_annotations_load(own: Writer) -> None:
    head = "from __future__ import annotations\nfrom dataclasses import dataclass, field\n"
    data = "\n@dataclass\nclass Settings:\n    sizes: list[int] = field(default_factory=list)\n"
    assert load_task(str(own(head + OWN.split('"""\n', 1)[1] + data))).name == "line"


class TestData:
    """The folder of data: named for a task, or for all of them by AUTOCOMP_DATA."""

    TAKES = "\ndef taking(data=None):\n    from dataclasses import replace\n    return replace(task(), name=f'from {data}')\n"
    NEEDS = "\ndef needing(data):\n    return task()\n"

    @pytest.fixture(autouse=True)
    def _unnamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AUTOCOMP_DATA", raising=False)

    def test_a_users_function_is_given_it(self, own: Writer, tmp_path: Path) -> None:
        name = f"{own(OWN + self.TAKES)}:taking"
        assert load(name).task.name == "from None"
        assert load(name).data is None
        loaded = load(name, data=tmp_path / ".")
        assert (loaded.task.name, loaded.data) == (f"from {tmp_path}", tmp_path)

    def test_the_environment_names_it_for_all(
        self, own: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AUTOCOMP_DATA", str(tmp_path))
        path = own(OWN + self.TAKES)
        assert load(f"{path}:taking").data == tmp_path
        assert load(f"{path}:task").data is None  # takes none, and was not given one for itself

    def test_a_task_that_takes_none_refuses_it(self, own: Writer, tmp_path: Path) -> None:
        with pytest.raises(TaskError, match=r"task\(\) in mytask\.py has no parameter data; leave --data out"):
            load(str(own(OWN)), data=tmp_path)
        with pytest.raises(TaskError, match="digits takes none; leave --data out"):
            load("digits", data=tmp_path)

    def test_a_task_that_needs_it_says_so(self, own: Writer, tmp_path: Path) -> None:
        assert "name a folder by --data or AUTOCOMP_DATA" in _error_of(f"{own(OWN + self.NEEDS)}:needing")
        with pytest.raises(TaskError, match="--data must name a folder"):
            load(f"{own(OWN + self.NEEDS)}:needing", data=tmp_path / "nowhere")

    @pytest.mark.parametrize("name", sorted(builtin_tasks().keys() - {"digits"}))
    def test_missing_data_of_a_built_in_task_are_one_line(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        for data in (None, tmp_path / "inner"):
            with pytest.raises(TaskError, match=r"--data.*AUTOCOMP_DATA") as caught:
                load(name, data=data)
            assert "\n" not in str(caught.value)


class TestListing:
    def test_all_that_has_a_name_is_listed(self) -> None:
        names = [task.name.partition(":")[0] for task in listed_tasks()]
        assert names == [*builtin_tasks(), *model_tasks()]

    @pytest.mark.parametrize("folder", MNIST_FOLDERS)
    def test_whether_data_are_found(self, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"):
            (tmp_path / "data" / folder / name).touch()

        def found(data: Path | None) -> dict[str, bool | None]:
            return {task.name: task.data_found for task in listed_tasks(data)}

        assert not any(found(None).values())
        there = found(tmp_path / "data")
        assert there["mnist-lenet5"]
        assert not there["cifar10-resnet20"]
        assert there["hf:FOLDER"] is None
        monkeypatch.setenv("AUTOCOMP_DATA", str(tmp_path / "data"))
        assert found(None) == there


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (None, "digits"),
        ("stsb-minilm", "stsb-minilm"),
        ("mine/my task.py:other", "my-task"),
        ("torchvision:resnet18", "resnet18"),
        ("torchvision:resnet18@some/weights.pth", "resnet18"),
        ("timm:vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("hf:models/all-MiniLM-L6-v2/", "all-MiniLM-L6-v2"),
    ],
)
def test_a_runs_name_is_the_models(name: str | None, short: str) -> None:
    assert short_name(name) == short


@pytest.mark.parametrize("name", ["digit", "Digits"])
def test_a_near_match_is_named(name: str) -> None:
    assert _error_of(name) == (
        "a task must be a built-in name, FILE.py[:function], torchvision:NAME, timm:NAME or hf:FOLDER; "
        f"got {name!r}; did you mean digits?"
    )


def test_an_unknown_name_lists_the_known() -> None:
    assert _error_of("zzz").endswith(
        "got 'zzz'; known: cifar10-resnet20, cifar10-resnet56, digits, mnist-lenet300, mnist-lenet5, stsb-minilm"
    )


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _error_of("nowhere.py:task") == (
        f"a task's file must exist; 'nowhere.py' does not, seen from {str(tmp_path)!r}"
    )


def test_a_missing_function_names_those_there_are(own: Writer) -> None:
    path = own(OWN)
    assert _error_of(f"{path}:tusk").endswith("it has no 'tusk'; did you mean task?")
    assert _error_of(f"{path}:zzz").endswith("it has no 'zzz'; known: evaluate, task")
    assert _error_of(f"{path}:").endswith("it has no ''; known: evaluate, task")
    assert "it has no 'SPLITS'" in _error_of(f"{path}:SPLITS")


def test_a_file_without_functions_says_so(own: Writer) -> None:
    assert _error_of(str(own("from json import loads\n"))).endswith("it has no 'task'; it defines none")


def test_a_function_that_raises_is_quoted_with_its_line(own: Writer) -> None:
    path = own("def helper(kind):\n    raise ValueError(f'no\\n  {kind}')\n\ndef task():\n    return helper('data')\n")
    assert _error_of(str(path)) == (
        "task() in mytask.py must return a task; it raised ValueError: no data, line 2 of mytask.py"
    )


def test_an_error_in_a_library_is_told_by_the_users_line(own: Writer) -> None:
    path = own("import json\n\ndef task():\n    return json.loads('{')\n")
    message = _error_of(str(path))
    assert "JSONDecodeError" in message
    assert message.endswith("line 4 of mytask.py")


def test_a_function_that_wants_arguments_is_told_so(own: Writer) -> None:
    assert "missing 1 required positional argument: 'size'" in _error_of(str(own("def task(size):\n    return size\n")))


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("import torch\n\ndef task(:\n    pass\n", "it raised SyntaxError: invalid syntax, line 3 of mytask.py"),
        ("x = 1\ny = x / 0\n", "it raised ZeroDivisionError: division by zero, line 2 of mytask.py"),
        (
            "import there_is_no_such_module\n",
            "ModuleNotFoundError: No module named 'there_is_no_such_module', line 1 of mytask.py",
        ),
        ("import sys\nsys.exit(3)\n", "it raised SystemExit: 3, line 2 of mytask.py"),
    ],
)
def test_a_file_that_does_not_load_is_quoted_with_its_line(own: Writer, text: str, end: str) -> None:
    message = _error_of(str(own(text)))
    assert message.startswith("mytask.py must load as Python; it raised ")
    assert message.endswith(end)


@pytest.mark.parametrize(
    ("returned", "end"),
    [
        ("None", "got None, which has no name, model, example_inputs, calibration, evaluate; "),
        ("{'model': 1}", "got a dict, which has no name, "),
        ("made(model=3)", "whose model is a torch.nn.Module; got a int"),
        ("made(example_inputs=x)", "whose example_inputs is a tuple of tensors; got a Tensor"),
        ("made(calibration=[x])", "whose calibration is a list of tuples of tensors; got a list"),
        ("made(calibration={0: x})", "whose calibration is a list of tuples of tensors; got a dict"),
        ("made(calibration=[])", "calibration must hold at least one batch; it is empty"),
        ("made(evaluate=0.5)", "whose evaluate is callable; got a float"),
        ("made(metric='accuracy')", "whose metric is a Metric; got a str"),
        ("made(dynamic_dims=1)", "whose dynamic_dims is a tuple of tuples of numbers; got a int"),
        ("made(train=5)", "whose train is a list of tuples of tensors, or None; got a int"),
        ("made(loss='mse')", "whose loss is callable, or None; got a str"),
    ],
)
def test_what_is_not_a_task_is_refused_by_the_field(own: Writer, returned: str, end: str) -> None:
    made = "\ndef made(**other):\n    from types import SimpleNamespace\n"
    made += "    return SimpleNamespace(**{**vars(task()), **other})\n"
    path = own(OWN + made + f"\ndef wrong():\n    return {returned}\n")
    assert end in _error_of(f"{path}:wrong")


def test_a_real_task_is_checked_field_by_field_too(own: Writer) -> None:
    path = own(OWN.replace("(x[:1],), [", "[x[:1]], ["))
    assert _error_of(str(path)).endswith("whose example_inputs is a tuple of tensors; got a list")
