"""Hugging Face model folders as tasks: what the model takes and gives, what torch.export makes of it, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from autocomp.errors import TaskError
from autocomp.task import Metric, Task
from autocomp.tasks.check import check_task
from autocomp.tasks.huggingface import pair_loss, rank_correlation
from autocomp.tasks.load import load_task
from autocomp.tasks.text_data import read_file
from tests.tiny_bert import WORDS, needs_transformers, write_model

pytestmark = needs_transformers

ROWS = 40


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(1, 3 + number % 7))


def write_data(folder: Path, label: Callable[[int], object], pairs: bool = True, **suffixes: str) -> Path:
    """A file per split, by default all as tab-separated text."""
    folder.mkdir(exist_ok=True)
    for place, (split, suffix) in enumerate({"train": "tsv", "dev": "tsv", "test": "tsv", **suffixes}.items()):
        rows: list[dict[str, object]] = [
            {"text": sentence(n), **({"text_pair": sentence(3 * n)} if pairs else {}), "label": label(n)}
            for n in range(place * ROWS, (place + 1) * ROWS)
        ]
        if suffix == "jsonl":
            lines = [json.dumps(row) for row in rows]
        else:
            table: list[list[object]] = [list(rows[0]), *(list(row.values()) for row in rows)]
            between = {"tsv": "\t", "csv": ","}[suffix]
            lines = [between.join(map(str, row)) for row in table]
        (folder / f"{split}.{suffix}").write_text("\n".join(lines) + "\n")
    return folder


def exported(task: Task) -> torch.export.ExportedProgram:
    """The task's model with a free batch and length, as autocomp asks for it."""
    doubled = tuple(torch.cat([tensor, tensor]) for tensor in task.example_inputs)
    free = tuple(dict.fromkeys((0, *dims), torch.export.Dim.DYNAMIC) for dims in task.dynamic_dims)
    with torch.no_grad():
        return torch.export.export(task.model, doubled, dynamic_shapes=free, strict=False)


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target).removeprefix("aten.") for node in program.graph.nodes if node.op == "call_function"]


def some_batch(inputs: int, batch: int, tokens: int) -> tuple[Tensor, ...]:
    """The last text is half padding."""
    generator = torch.Generator().manual_seed(batch * tokens)
    ids = torch.randint(4, 4 + len(WORDS), (batch, tokens), generator=generator)
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    ids[-1, (tokens + 1) // 2 :], mask[-1, (tokens + 1) // 2 :] = 0, 0
    types[:, tokens // 3 :] = 1
    return (ids, mask, types)[:inputs]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("embeddings")
    write_model(folder / "tiny", head=False)
    return load_task(f"hf:{folder / 'tiny'}", data=write_data(folder / "data", lambda n: (n * 7) % 11 / 2))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("classifier") / "tiny", head=True)


class TestEmbeddings:
    def test_it_holds_together(self, embedder: Task) -> None:
        assert embedder.name == "tiny"
        assert embedder.metric == Metric("Spearman", "maximize", "%")
        assert embedder.dynamic_dims == ((1,), (1,))
        assert [tuple(tensor.shape) for tensor in embedder.example_inputs] == [(1, 40), (1, 40)]  # all that it takes
        assert embedder.example_inputs[1].all()
        assert sum(len(ids) for ids, _ in embedder.calibration) == ROWS
        score = check_task(embedder)
        assert -100 <= score.value <= 100
        assert score.outcomes is None

    def test_embeddings_have_length_1_and_do_not_see_padding(self, embedder: Task) -> None:
        (ids, mask), more = some_batch(2, 1, 9), 5
        padded = (torch.nn.functional.pad(ids, (0, more)), torch.nn.functional.pad(mask, (0, more)))
        with torch.no_grad():
            one, other = embedder.model(ids, mask), embedder.model(*padded)
        assert one.shape == (1, 32)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(1))

    def test_the_score_is_that_of_mean_pooled_cosines(self, embedder: Task, tmp_path: Path) -> None:
        import transformers
        from scipy.stats import spearmanr

        folder = write_model(tmp_path / "tiny", head=False)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

        def embedding(text: str) -> Tensor:
            with torch.no_grad():
                tokens: Tensor = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            return tokens.mean(dim=0)

        numbers = range(ROWS, 2 * ROWS)
        alike = [
            float(torch.nn.functional.cosine_similarity(embedding(sentence(n)), embedding(sentence(3 * n)), dim=0))
            for n in numbers
        ]
        expected = 100 * spearmanr(np.round(alike, 6), [(n * 7) % 11 / 2 for n in numbers]).statistic
        assert embedder.evaluate(embedder.model, "search").value == pytest.approx(expected, abs=0.5)

    def test_attention_stays_one_operator_and_the_mask_takes_few(self, embedder: Task) -> None:
        found = operators(exported(embedder))
        assert found.count("scaled_dot_product_attention.default") == 2
        assert not {"matmul.default", "softmax.int", "expand.default", "index.Tensor", "arange.default"} & set(found)
        assert not any("tanh" in name for name in found)  # the pooler, which nobody reads

    def test_batch_and_length_stay_free(self, embedder: Task) -> None:
        module = exported(embedder).module(check_guards=False)
        for batch, tokens in ((1, 1), (1, 17), (3, 8), (5, 40)):
            inputs = some_batch(2, batch, tokens)
            with torch.no_grad():
                torch.testing.assert_close(module(*inputs), embedder.model(*inputs))

    def test_recovery_batches_hold_pairs_with_their_scores(self, embedder: Task) -> None:
        assert embedder.train is not None
        assert [len(batch) for batch in embedder.train] == [3, 3]
        ids, mask, scores = embedder.train[0]
        assert ids.shape == mask.shape
        assert len(ids) == len(scores) == 64
        assert scores.dtype == torch.float32
        assert scores[::2].equal(scores[1::2])
        assert sum(len(batch[0]) for batch in embedder.train) == 2 * ROWS

    def test_recovery_batches_hold_pairs_of_like_lengths(self, embedder: Task) -> None:
        assert embedder.train is not None
        lengths = [batch[0].shape[1] for batch in embedder.train]
        assert lengths == sorted(lengths)

    def test_parts_are_nested(self, embedder: Task) -> None:
        def seen_at(fraction: float) -> set[bytes]:
            seen: set[bytes] = set()

            def predict(ids: Tensor, mask: Tensor) -> Tensor:
                seen.update(bytes(row[kept.bool()].numpy()) for row, kept in zip(ids, mask, strict=True))
                return torch.rand(len(ids), 4)

            embedder.evaluate(predict, "test", fraction)
            return seen

        assert seen_at(0.2) < seen_at(0.6) < seen_at(1.0)

    def test_a_model_that_gives_the_same_for_all_scores_nothing(self, embedder: Task) -> None:
        assert embedder.evaluate(lambda ids, _mask: torch.ones(len(ids), 4), "search").value == 0.0


@pytest.mark.parametrize(("kind", "positions"), [("distilbert", 40), ("roberta", 39)])
def test_other_architectures_export_too(kind: str, positions: int, tmp_path: Path) -> None:
    model, data = write_model(tmp_path / kind, head=False, kind=kind), write_data(tmp_path / "data", lambda n: n % 5)
    task = load_task(f"hf:{model}", data=data)
    assert task.example_inputs[0].shape == (1, positions)
    program = exported(task)
    assert operators(program).count("scaled_dot_product_attention.default") == 2
    inputs = some_batch(2, 3, 11)
    with torch.no_grad():
        torch.testing.assert_close(program.module(check_guards=False)(*inputs), task.model(*inputs))


class TestClassification:
    @pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
    def test_it_holds_together(self, classifier: Path, tmp_path: Path, suffix: str) -> None:
        data = write_data(tmp_path / "data", lambda n: n % 3, train=suffix, dev=suffix, test=suffix)
        task = load_task(f"hf:{classifier}", data=data)
        assert task.metric == Metric("accuracy", "maximize", "%")
        assert task.dynamic_dims == ((1,), (1,), (1,))
        assert [tuple(tensor.shape) for tensor in task.example_inputs] == [(1, 40)] * 3
        score = check_task(task)
        assert score.outcomes is not None
        assert len(score.outcomes) == ROWS
        assert task.train is not None
        assert sum(len(batch[-1]) for batch in task.train) == ROWS
        assert task.train[0][2].any()  # second texts have a type of their own

    def test_batch_and_length_stay_free(self, classifier: Path, tmp_path: Path) -> None:
        task = load_task(f"hf:{classifier}", data=write_data(tmp_path / "data", lambda n: n % 3))
        program = exported(task)
        assert operators(program).count("scaled_dot_product_attention.default") == 2
        module = program.module(check_guards=False)
        for batch, tokens in ((1, 5), (4, 40)):
            inputs = some_batch(3, batch, tokens)
            with torch.no_grad():
                torch.testing.assert_close(module(*inputs), task.model(*inputs))

    def test_labels_may_be_names_and_search_may_be_held_out(self, classifier: Path, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", lambda n: ("bad", "good", "so-so")[n % 3], pairs=False)
        (data / "dev.tsv").unlink()
        said: list[str] = []
        task = load_task(f"hf:{classifier}", said.append, data)
        assert said == ["tiny: no search split given; 8 of 40 training examples held out"]
        assert len(np.atleast_1d(check_task(task).outcomes)) == 8  # type: ignore[arg-type]

    def test_a_label_of_another_name(self, classifier: Path, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", lambda n: "goood")
        with pytest.raises(TaskError, match=r"got 'goood'; known: bad, good, so-so"):
            load_task(f"hf:{classifier}", data=data)


class TestRefused:
    def refusal(self, folder: Path, data: Path | None) -> str:
        with pytest.raises(TaskError) as caught:
            load_task(f"hf:{folder}", data=data)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_folders_that_hold_no_such_model(self, tmp_path: Path) -> None:
        assert "must hold config.json" in self.refusal(tmp_path / "nowhere", None)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
        assert "has BertForMaskedLM; write a task of your own" in self.refusal(tmp_path, None)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "of my own"}))
        assert "must have a configuration" in self.refusal(tmp_path, None)

    def test_a_folder_without_its_weights(self, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", lambda n: n % 3)
        model = write_model(tmp_path / "tiny", head=True)
        (model / "model.safetensors").unlink()
        assert "must load with transformers" in self.refusal(model, data)
        # Weights of another head: those of this one would be made up.
        write_model(tmp_path / "headless", head=False)
        (tmp_path / "headless" / "model.safetensors").rename(model / "model.safetensors")
        assert "lacks 2, classifier.bias among them" in self.refusal(model, data)

    def test_data_that_are_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
        model = write_model(tmp_path / "tiny", head=False)
        assert "needs data; name a folder by --data or AUTOCOMP_DATA" in self.refusal(model, None)
        data = write_data(tmp_path / "data", lambda n: n % 3, pairs=False)
        assert "train has no column text_pair" in self.refusal(model, data)
        (data / "train.tsv").unlink()
        assert self.refusal(model, data).endswith("has no train")

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("a.tsv", "text\tlabl\nx\t1\n", "entry 1 has no label; the columns are text, labl"),
            ("a.tsv", "text\tlabel\nx\t1\ny\n", "entry 2 has no label"),
            ("a.csv", "text,label\n", "is empty"),
            ("a.jsonl", '{"text": "x"', "must be jsonl in UTF-8"),
            ("a.jsonl", "[1]\n", "a line must be an object"),
            (
                "a.jsonl",
                '{"text": "x", "text_pair": "y", "label": 1}\n{"text": "x", "text_pair": null, "label": 1}\n',
                "must have a text_pair in all entries or in none; entry 2 has none",
            ),
        ],
    )
    def test_files_of_another_form(self, tmp_path: Path, name: str, text: str, words: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(TaskError) as caught:
            read_file(tmp_path / name)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_of_a_spreadsheet_begins_with_a_mark(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text,label\nwell,1\n", encoding="utf-8-sig")
        assert read_file(tmp_path / "a.csv").texts == ("well",)

    def test_quotation_marks_in_tabbed_text_are_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "a.tsv").write_text('text\tscore\n"well\t1\nso"\t2\n')
        assert read_file(tmp_path / "a.tsv").texts == ('"well', 'so"')
        assert read_file(tmp_path / "a.tsv").scores() == (1.0, 2.0)


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    values, others = rng.integers(0, 9, 50), rng.normal(size=50)
    assert rank_correlation(values, others) == pytest.approx(spearmanr(values, others).statistic)
    assert rank_correlation(values, values) == pytest.approx(1.0)
    assert np.isnan(rank_correlation(np.array([1.0, np.nan]), others[:2]))


def test_the_loss_of_pairs_is_a_correlation_on_any_scale() -> None:
    from scipy.stats import pearsonr

    embeddings = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines = (embeddings[::2] * embeddings[1::2]).sum(dim=1)
    scores = torch.linspace(0, 5, 20)
    expected = 1 - pearsonr(cosines.numpy(), scores.numpy()).statistic
    assert float(pair_loss(embeddings, scores.repeat_interleave(2))) == pytest.approx(expected, abs=1e-5)
    assert float(pair_loss(embeddings, (20 * cosines - 7).repeat_interleave(2))) == pytest.approx(0.0, abs=1e-5)
    embeddings.requires_grad_()
    (slope,) = torch.autograd.grad(pair_loss(embeddings, torch.ones(40)), embeddings)
    assert not slope.any()


def test_a_task_may_be_changed_field_by_field(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", lambda n: n % 5)
    task = load_task(f"hf:{write_model(tmp_path / 'tiny', head=False)}", data=data)
    assert replace(task, train=None).train is None
