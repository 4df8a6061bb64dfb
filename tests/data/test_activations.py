"""Stores that are built once, shard by shard, and batches that are functions of their number."""

import numpy as np
import pytest
import torch

from sparsebook.data.activations import build_store, sampled, shuffled, stream


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path))
    return tmp_path


def table(index, rows=10, width=3):
    """Rows that float16 holds exactly and that say where they are from."""
    return torch.arange(rows * width).view(rows, width).float() + 100 * index


VERSIONS = ("1-a", "1-b", "1-c")
SIZES = (10, 7, 4)


@pytest.fixture
def store():
    return build_store("toy", VERSIONS, lambda index: table(index, SIZES[index]))


def test_rows_come_back_in_order(store):
    whole = torch.cat([table(i, n) for i, n in enumerate(SIZES)])
    assert (len(store), store.sizes, store.width) == (21, SIZES, 3)
    torch.testing.assert_close(store.rows(), whole, rtol=0, atol=0)
    for start, stop in ((0, 0), (3, 12), (9, 18), (20, 21)):
        torch.testing.assert_close(store.rows(start, stop), whole[start:stop], rtol=0, atol=0)
    with pytest.raises(ValueError, match="stop=22"):
        store.rows(3, 22)


def test_shards_are_made_once_and_an_interrupted_build_goes_on(store):
    made = []

    def produce(index):
        made.append(index)
        if len(made) == 2:
            raise KeyboardInterrupt
        return table(index)

    with pytest.raises(KeyboardInterrupt):
        build_store("other", VERSIONS, produce)
    again = build_store("other", VERSIONS, produce, progress=True)
    assert made == [0, 1, 1, 2]
    assert build_store("other", VERSIONS, produce).shards == again.shards
    assert made == [0, 1, 1, 2]


def test_a_damaged_shard_is_made_again(store):
    path = store.shards[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    made = []

    def produce(index):
        made.append(index)
        return table(index, SIZES[index])

    mended = build_store("toy", VERSIONS, produce)
    assert made == [1]
    torch.testing.assert_close(mended.rows(10, 17), table(1, 7), rtol=0, atol=0)


def test_values_beyond_float16_need_a_scale():
    large = torch.tensor([[1e6, -2.0]])
    with pytest.raises(ValueError, match="65504"):
        build_store("large", ["1"], lambda _: large)
    store = build_store("large", ["2"], lambda _: large, scale=64.0)
    torch.testing.assert_close(store.rows(), large, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        build_store("bad", ["1"], lambda _: torch.tensor([[1.0, bad]]))


def test_wrong_shards_are_refused():
    with pytest.raises(ValueError, match="versions is empty"):
        build_store("none", [], table)
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        build_store("empty", ["1"], lambda _: torch.zeros(0, 3))
    with pytest.raises(ValueError, match="widths"):
        build_store("uneven", ["1", "2"], lambda index: table(index, width=3 + index))


# --- batches ------------------------------------------------------------------------------------------------


def test_streams_depend_on_all_their_numbers():
    draws = [torch.rand(3, generator=stream(*numbers)).tolist() for numbers in ((0, 1), (1, 0), (0, 2), (0,))]
    assert len({tuple(draw) for draw in draws}) == 4
    assert torch.rand(3, generator=stream(0, 1)).tolist() == draws[0]


@pytest.mark.parametrize("buffer", [2**18, 8])
def test_an_epoch_has_every_row_once(store, buffer):
    source = shuffled(store, 3, seed=1, buffer=buffer, block=2)
    epochs = [torch.cat([source(7 * epoch + step) for step in range(7)]) for epoch in range(2)]
    for epoch in epochs:
        assert sorted(epoch[:, 0].tolist()) == sorted(store.rows()[:, 0].tolist())
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("buffer", [2**18, 8])
def test_a_batch_depends_on_its_number_only(store, buffer):
    first, second = (shuffled(store, 4, seed=2, buffer=buffer, block=2) for _ in range(2))
    forwards = {step: first(step) for step in range(12)}
    for step in (11, 3, 4, 0, 7):
        torch.testing.assert_close(second(step), forwards[step], rtol=0, atol=0)


def test_every_order_is_about_equally_likely_in_a_table():
    rows = torch.arange(3.0)[:, None]
    orders = [tuple(shuffled(rows, 3, seed)(0).flatten().tolist()) for seed in range(300)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert ((counts - 50) ** 2 / 50).sum() < 20.5  # chi-squared with 5 degrees of freedom at 0.001


def test_several_seeds_are_each_seeds_own_stream(store):
    many = shuffled(store, 4, seed=(5, 9), scale=0.5)
    for step in (0, 6):
        for index, seed in enumerate((5, 9)):
            torch.testing.assert_close(
                many(step)[index], 0.5 * shuffled(store, 4, seed)(step), rtol=0, atol=0
            )


def test_sampled_batches_are_functions_of_seed_and_step():
    def sample(n, generator):
        return torch.rand(n, 2, generator=generator)

    many, one = sampled(sample, 5, seed=(0, 3)), sampled(sample, 5, seed=3)
    torch.testing.assert_close(many(17)[1], one(17), rtol=0, atol=0)
    assert many(17).shape == (2, 5, 2)
    assert one(17).tolist() != one(18).tolist()


def test_batches_that_cannot_be_are_refused(store):
    with pytest.raises(ValueError, match="batch_size=22"):
        shuffled(store, 22)
    with pytest.raises(ValueError, match="buffer=4"):
        shuffled(store, 5, buffer=4, block=2)
    with pytest.raises(ValueError, match="batch_size=0"):
        sampled(lambda n, g: torch.rand(n, 2, generator=g), 0)
    with pytest.raises(ValueError, match="seed"):
        shuffled(store, 4, seed=())
