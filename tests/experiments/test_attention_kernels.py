"""The chapter's experiments: patterns of the stated density, honest rivals, tables, figures, all scales."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.experiments import attention_kernels as experiment
from sparsebook.experiments.attention_kernels import checks, inputs, parts, results, runs
from sparsebook.experiments.attention_kernels.scales import SCALES, Config
from sparsebook.kernels.block_attention import block_sparse_attention, span_attention


@pytest.fixture(scope="module")
def config():
    return Config.at("smoke", tokens=256, shape_tokens=256, lengths=(128, 256), live_tokens=256)


@pytest.fixture(scope="module")
def found(config):
    return experiment.tables(config)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_blocks_have_the_stated_density_and_gathering_them_is_attention(causal, density):
    q, k, v = inputs.normal(0, 1, 2, 512, 16)
    mask = inputs.random_blocks(2, 512, density, block=64, causal=causal)
    blocks = mask.to_dense().bool().repeat_interleave(64, 2).repeat_interleave(64, 3)
    full = torch.ones(512, 512, dtype=torch.bool)
    full = full.tril() if causal else full
    attended = blocks & full
    share = attended.sum().item() / 2 / full.sum().item()
    assert inputs.density_of(mask, 512, causal=causal) == pytest.approx(share)
    assert abs(share - density) < 0.1
    expected = scaled_dot_product_attention(q, k, v, attn_mask=attended)
    for out in (
        inputs.gather_and_attend(q, k, v, mask, causal=causal),
        block_sparse_attention(q, k, v, mask),
    ):
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_columns_have_the_stated_density_and_copying_them_is_attention():
    q, k, v = inputs.normal(0, 1, 2, 256, 16)
    index = inputs.random_columns(2, 256, 64, 0.25)
    assert index.density(256, 256, causal=False) == 0.25
    out = span_attention(q, k, v, index, causal=False)
    torch.testing.assert_close(runs.copy_and_attend(q, k, v, index), out, rtol=1e-5, atol=1e-5)


def test_layouts_are_compared_at_equal_density():
    config = Config.at("full")
    for index in runs._layouts(config).values():
        index.check(1, config.heads, config.shape_tokens, config.shape_tokens)
        assert index.density(config.shape_tokens, config.shape_tokens, causal=False) == config.shape_density


def test_the_kernel_agrees_with_the_reference_in_every_layout():
    table = experiment.exact_table()
    agrees = table[[name for name in table if "within" in name]]
    assert agrees.all(axis=None)
    assert agrees.shape == (9, 3)  # layouts, causal or not, and types


def test_a_wrong_kernel_is_noticed(monkeypatch):
    """A key too few in every span: the table of exact things says so."""

    def shortened(q, k, v, index, **more):
        spans = index.spans.clone()
        spans[..., 1] = torch.maximum(spans[..., 0], spans[..., 1] - 1)
        return span_attention(q, k, v, type(index)(spans, *list(vars(index).values())[1:]), **more)

    monkeypatch.setattr(checks, "span_attention", shortened)
    table = checks.run_exact((torch.float32,)).set_index("layout")
    assert not table.loc["spans", "agrees"].any()
    assert table.loc["columns", "agrees"].all()


@pytest.mark.slow
def test_tables_are_tidy_and_ratios_are_to_the_ideal(found):
    from sparsebook.recorded import COLUMNS

    for table in found.values():
        assert set(COLUMNS) <= set(table)
        assert np.isfinite(table.value).all()
        assert (table.value > 0).all()
    density = found["density"]
    wide = density.pivot_table(index=["causal", "density", "method"], columns="metric", values="value")
    ideal = wide["over_dense"] / wide.index.get_level_values("density")
    sparse = wide.index.get_level_values("method") != "dense"
    assert np.allclose(wide["over_ideal"][sparse], ideal[sparse])
    assert (wide.xs("dense", level="method")[["over_dense", "over_ideal"]] == 1).all(axis=None)
    decode = found["decode"].query("metric == 'bytes' and dtype == 'bfloat16'")
    assert decode.value.max() == 2 * 4 * 2048 * 64 * 2


def test_parts_of_a_tile_take_time():
    seconds = parts.seconds_per_tile(32, 1, repeats=2)
    assert list(seconds) == ["logits", "softmax", "values"]
    assert min(seconds.values()) > 0


def test_numbers_of_the_prose_and_the_bar(found, config):
    text = experiment.answers(found, config)
    assert text["ideal_tenth"] == results.NOT_MEASURED  # this density is not in a smoke run
    assert float(text["ideal_quarter"]) > 0
    table = experiment.demands(found)
    assert set(table.met) <= {"yes", "no", results.NOT_MEASURED}
    slow = {name: table.copy() for name, table in found.items()}
    slow["density"].loc[slow["density"].metric.isin(["over_ideal", "over_dense"]), "value"] = 9.0
    assert list(experiment.demands(slow).met)[:1] == ["no"]
    assert list(experiment.demands(slow).met)[-1:] == ["no"]
    assert not experiment.parts_table(found["limit"]).empty
    assert not experiment.speed_table(found["density"]).empty
    assert not experiment.threads_table(found["threads"]).empty


def test_flex_is_compared_where_it_was_measured():
    head = {"experiment": "density", "seed": 0, "metric": "seconds", "wanted": 0.25, "causal": False}
    table = pd.DataFrame(
        [head | {"method": "flex", "value": 3.0}, head | {"method": "block_sparse", "value": 1.5}]
    )
    assert results.flex({"density": table}, 0.25) == 2.0
    assert math.isnan(results.flex({"density": table}, 0.1))


def test_a_live_ratio_is_held_against_the_processes(found):
    recorded = found["processes"].query("metric == 'over_ideal'")["value"]
    inside = experiment.agreement(float(recorded.median()), found)
    outside = experiment.agreement(float(recorded.max()) * 1e9, found)
    assert inside["inside the prediction"].item() == "yes"
    assert outside["inside the prediction"].item() == "NO"


@pytest.mark.parametrize("name", ["limit", "density", "shapes", "layouts", "decode"])
def test_figures_are_drawn(found, name):
    import matplotlib.pyplot as plt

    figure = getattr(experiment, f"draw_{name}")(found[name])
    assert all(axes.has_data() for axes in figure.axes)
    plt.close(figure)


def test_the_example_masks_are_causal():
    from sparsebook.experiments.attention_kernels.figures import _example_masks

    masks = _example_masks(256)
    assert len(masks) == 5
    for mask in list(masks.values())[:4]:
        assert 0 < mask.sum() < 256 * 257 / 2
        assert torch.equal(mask, mask.tril())


def test_every_scale_constructs():
    assert {Config.at(scale).scale for scale in SCALES} == set(SCALES)
    assert Config.at("full", heads=2).heads == 2
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("paper")


def test_records_are_kept_and_read_back(config, tmp_path, monkeypatch):
    from sparsebook import recorded

    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recorded, "_folder", lambda book: tmp_path)
    experiment.record(config, ("layouts",))
    experiment.record(config, ("layouts",))  # the kept stage, not measured again
    kept = recorded.load("attention", "layouts")
    kept.replay()
    assert set(kept.table.method) >= {"dense", "blocks of 128", "columns for 128 queries"}
