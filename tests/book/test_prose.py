"""The rule that no measured number is typed into a chapter's text."""

import pytest

from sparsebook.book.prose import typed_numbers


@pytest.mark.parametrize(
    "line",
    [
        "It answers in 12 ms.",
        "It answers in 187 µs.",
        "It takes 3.5 GB of memory.",
        "a 4x speed-up",
        "a 4 × speed-up",
        "It is 10 times faster.",
        "It reaches 97 % of the mass.",
        "It reaches 97% of the mass.",
        "Recall is 0.953 here.",
        "It took 41 s.",
        "It took 41 seconds.",
        "1,200 MB",
        "80 GFLOP/s",
        "a 12-fold gain",
        "**12 ms**",
        "| 12 ms | 3 |",
        "- 2.5x",
        "at 9.7 % and",
        "around 3min",
        "> 12 ms in a quotation",
        "0.95 at 20us",
    ],
)
def test_measured_numbers_are_found(line: str) -> None:
    assert len(typed_numbers([line])) == 1, line


@pytest.mark.parametrize(
    "line",
    [
        "The method has 4 steps and 2 ideas.",
        "Recall at 10 of 0.95 and 0.97.",
        "It takes $12\\,\\text{ms}$.",
        "It takes {glue:text}`time_ms:.1f` ms.",
        "It takes `sleep 12 s` in code.",
        "See arXiv 2404.18812 of 2024.",
        "the 95 % interval and a 95 % confidence interval",
        "[12 ms](https://a.org/12ms)"[8:],
        "https://a.org/12ms/0.1234",
        "Introduced in the 1990s.",
        "torch 2.13.0 and seismic 0.5.4",
        "a 3 x 3 grid of 16 × 16 blocks",
        "size 8x8",
        "Figure 3 shows 8 seeds",
        "The paper reports 187 µs {cite:p}`seismic`.",
        "187 µs at 90 % <!-- paper -->",
        "batches of 64 MB <!-- setting: fits the cache -->",
        "MS MARCO has 8,841,823 passages",
        "Gemma 3 270M",
        "the 5 methods",
        "in 2024 Smith",
        "Section 3.1.2",
        "top-10 hits",
        "an SHA-256 sum",
        "60 sentences",
        "k = 10",
        "float32 and 8-bit codes",
        "5 hidden layers",
    ],
)
def test_other_numbers_are_left_alone(line: str) -> None:
    assert typed_numbers([line]) == [], line


def test_code_and_mathematics_are_left_alone_and_prose_in_directives_is_not() -> None:
    source = """
$$
t = 12 ms
$$

```python
sleep("12 ms")
```

````{note}
This takes 13 ms.

```bash
sleep 14 s
```
````

:::{tip} It took 15 ms
And 16 ms.
:::

```{math}
17 ms
```

This took 18 ms.
"""
    assert [number for _, number, _ in typed_numbers([source])] == ["13 ms", "15 ms", "16 ms", "18 ms"]


def test_sections_about_settings_are_free_until_the_next_one() -> None:
    cells = [
        "# Title\n12 ms",
        "## What differs from the paper\nWe use 16 GB.\n### Hardware\n2 GHz",
        "still 3 ms",
        "## Results\n4 ms",
        "## At the paper's scale\n5 GB",
        "# Another\n6 ms",
    ]
    assert [(cell, number) for cell, number, _ in typed_numbers(cells)] == [
        (0, "12 ms"),
        (3, "4 ms"),
        (5, "6 ms"),
    ]
