"""Some of many values stand for all of them, whatever the shape they come in."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.quantize import SAMPLE, SAMPLES, RangeObserver
from autocomp.compress.sampling import spread_places


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 600))
def test_there_is_one_place_in_every_equal_part(count: int, most: int) -> None:
    places = torch.arange(count)[spread_places(count, most)]
    if count <= most:
        assert places.tolist() == list(range(count))
    else:
        borders = [part * count // most for part in range(most + 1)]
        for place, first, last in zip(places.tolist(), borders, borders[1:], strict=False):
            assert first <= place < last
    assert torch.equal(places, torch.arange(count)[spread_places(count, most)])


def test_every_column_of_an_image_and_every_channel_of_a_sequence_is_seen() -> None:
    columns = torch.arange(32.0).expand(64, 16, 32, 32)
    channels = torch.arange(768.0).expand(32, 64, 768)
    for whole, kinds in ((columns, 32), (channels, 768)):
        observer = RangeObserver()
        observer(whole)
        (sample,) = observer.samples
        assert len(sample) == SAMPLE
        assert len(torch.unique(sample)) == kinds
        assert abs(float(sample.mean()) / float(whole.mean()) - 1) < 0.01


def test_of_many_batches_each_has_a_share_in_the_sample() -> None:
    observer = RangeObserver()
    for number in range(16):
        observer(torch.full((SAMPLE + 1,), float(number)))
    assert [len(one) for one in observer.samples] == [SAMPLE] * 16  # of few, all that were always kept
    for number in range(16, 100):
        observer(torch.full((SAMPLE + 1,), float(number)))
        assert sum(map(len, observer.samples)) <= SAMPLES
    shares = Counter(torch.cat(observer.samples).tolist())
    assert shares == dict.fromkeys(range(100), SAMPLE // 8)


def test_of_batches_of_few_values_all_are_kept() -> None:
    observer = RangeObserver()
    for _ in range(100):
        observer(torch.zeros(10))
    assert [len(one) for one in observer.samples] == [10] * 100
