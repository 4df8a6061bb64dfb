"""Long prompts of any length whose answers are known: needles, variables and common words, after RULER.

The generators follow RULER (Hsieh and others, "RULER: What's the Real Context Size of Your Long-Context
Language Models?", 2024) with the sizes that "The Sparse Frontier" (2025, appendix on tasks) uses; the
sentences are our own. A sample is a question, a context, and the question again; it fills 95 to 100 % of
`max_tokens` as counted by the caller's tokenizer.

>>> def count(text):
...     return len(text.split())
>>> sample = ruler_niah(count, 400, seed=0)
>>> len(sample.answer), 380 <= count(sample.prompt) <= 400
(4, True)
>>> exact_match(sample.answer, sample.answer)
1.0
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CountTokens = Callable[[str], int]

LEAST_FILLED = 0.95
"""Share of `max_tokens` that a sample fills at least."""

FILLER = "The lamp is lit. The river runs by. A cart goes up the hill and comes down again."
ALPHABET = np.array(list(string.ascii_lowercase + string.digits))
CAPITALS = np.array(list(string.ascii_uppercase))

_NOUNS = """
acorn anchor ankle apple apron arrow artist attic autumn baker balcony banjo barber barrel basin basket
beach beacon beard beetle bell bench berry bicycle biscuit blanket blossom boat bonnet bottle boulder
branch bread breeze brick bridge broom brother brush bucket builder bullet butter button cabbage cabin
cable cactus camel camera candle canoe canyon captain carpet carrot castle cavern cedar cellar chain chair
chalk cheese cherry chimney cinema circle citizen clay cliff clock cloud clover coach coast coat cobbler
coffee coin collar comet compass cook copper coral corner cottage cotton cousin cradle crane crater
cricket crown crystal cup curtain cushion dairy dancer daisy dagger deer desert desk diamond dinner doctor
dollar donkey door dragon drawer dress driver drum eagle easel echo elbow elm engine envelope evening
fabric falcon farmer feather fence ferry fiddle field finger fire fisher flag flame flask flood flour
flower flute fog forest fork fountain fox frame frost fruit furnace galaxy garden garlic gate gift ginger
giraffe glacier glass glove goat gold goose grain grape gravel guitar gutter hammer handle harbour harp
harvest hawk hazel heart hedge helmet herb heron hinge honey hood horizon horn horse hotel house hunter
iceberg igloo inch infant ink insect iron island ivory jacket jar jewel jockey judge juice jungle kettle
keyboard kingdom kitchen kite kitten knee knife knot ladder lagoon lake lamp lantern laundry lawn leaf
leather lemon letter library lily lion lizard lobster locket log lumber magnet mango mantle maple marble
market mask meadow medal melon merchant metal mill miner mirror mist mitten monk moon morning moss motor
mountain mouse muffin museum mushroom napkin needle nephew nest net nickel night noodle north nose
notebook novel nurse oak oar oasis ocean olive onion orange orchard otter oven owl oyster paddle page
paint palace palm pancake panther paper parade parcel parrot pasture path peach pear pebble pelican pencil
pepper pewter piano picnic pigeon pillow pilot pine pirate planet plate plum pocket poet pond pony porch
potato potter powder prairie prince puddle pulley pumpkin puppet quail quarry queen quill quilt rabbit
radio radish raft rail rain ranch raven ribbon rice rider ring river road robin rocket roof root rope rose
rudder ruler saddle sailor salad salt sand saucer scarf school scissors sculptor seal season shadow sheep
shelf shell shepherd ship shoe shovel silk silver singer sister sky sleeve smoke snail snow soap sofa
soldier sparrow spice spider spoon squirrel stable stair star statue steam stone stool storm stove straw
stream street sugar summer sunset swan sword table tailor teacher temple tent theatre thimble thread
throne thunder ticket tiger timber toast tomato torch tower trail train tree trumpet tulip tunnel turtle
uncle valley vase velvet village vine violin volcano wagon wallet walnut watch water wave weaver whale
wheat wheel whistle widow willow window wing winter wizard wolf wool worker wren yard zebra
"""
NOUNS = tuple(_NOUNS.split())


@dataclass(frozen=True)
class Sample:
    """A long prompt and its answer.

    Attributes
    ----------
    prompt : str
        What a model reads: instruction and question, context, question and the form of the answer.
    question, context : str
        Its parts.
    answer : tuple of str
        The right answer: in order where the order counts.
    n_tokens : int
        Length of the prompt by the caller's count.
    """

    prompt: str
    question: str
    context: str
    answer: tuple[str, ...]
    n_tokens: int


# --- scores -------------------------------------------------------------------------------------------------


def read_answer(text: str) -> tuple[str, ...]:
    """The items that a model wrote between ``<answer>`` and ``</answer>``, separated by commas.

    The last complete block counts; without one the answer is empty.
    """
    blocks = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL | re.IGNORECASE)
    items = blocks[-1].split(",") if blocks else []
    return tuple(item.strip() for item in items if item.strip())


def exact_match(predicted: Sequence[str], answer: Sequence[str]) -> float:
    """Share of the answer's positions at which the prediction says the same, case and outer blanks aside."""
    _check_answer(predicted, answer)
    pairs = zip(predicted, answer, strict=False)
    return sum(_plain(a) == _plain(b) for a, b in pairs) / len(answer)


def intersection_over_union(predicted: Sequence[str], answer: Sequence[str]) -> float:
    """Size of the intersection of both sets over that of their union."""
    _check_answer(predicted, answer)
    found, wanted = {_plain(a) for a in predicted}, {_plain(b) for b in answer}
    return len(found & wanted) / len(found | wanted)


def token_f1(predicted: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words, punctuation and articles aside (SQuAD's measure)."""
    found, wanted = _words(predicted), _words(answer)
    common = (Counter(found) & Counter(wanted)).total()
    if not found or not wanted:
        return float(found == wanted)
    return 2 * common / (len(found) + len(wanted))


def _check_answer(predicted: Sequence[str], answer: Sequence[str]) -> None:
    for name, value in (("predicted", predicted), ("answer", answer)):
        if isinstance(value, str):
            raise ValueError(f"{name}={value!r}: expected a sequence of texts, see read_answer")
    if not answer:
        raise ValueError("answer is empty: expected at least one item")


def _plain(item: str) -> str:
    return item.strip().casefold()


def _words(text: str) -> list[str]:
    bare = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return [word for word in bare.split() if word not in {"a", "an", "the"}]


# --- filling a prompt ---------------------------------------------------------------------------------------


def most_units(
    count_tokens: CountTokens, max_tokens: int, least_units: int, prompt_of: Callable[[int], str]
) -> tuple[int, int]:
    """The largest number of units with which a prompt still fits, and its length in tokens.

    Parameters
    ----------
    count_tokens : callable
        Length of a text in tokens.
    max_tokens : int
        Most tokens of the prompt.
    least_units : int
        Units that the task needs.
    prompt_of : callable
        Number of units -> prompt, longer with every unit.

    Raises
    ------
    ValueError
        The task does not fit into `max_tokens`.
    """
    low, tokens = least_units, count_tokens(prompt_of(least_units))
    if tokens > max_tokens:
        raise ValueError(f"max_tokens={max_tokens}: expected at least {tokens}, the task's shortest prompt")
    # A unit is a token at least: a count that does not grow must not be followed for ever.
    step, most = 1, least_units + max_tokens
    while low + step <= most and count_tokens(prompt_of(low + step)) <= max_tokens:
        low, step = low + step, 2 * step
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_tokens(prompt_of(middle)) <= max_tokens else (low, middle)
    return low, count_tokens(prompt_of(low))


def check_filled(max_tokens: int, tokens: int) -> None:
    """That a prompt fills its length.

    Raises
    ------
    ValueError
        Its units are so long that less than 95 % of `max_tokens` are filled.
    """
    if tokens < LEAST_FILLED * max_tokens:
        raise ValueError(
            f"max_tokens={max_tokens}: expected more, or shorter units: only {tokens} tokens could be filled"
        )


def lay_out(task: str, question: str, context: str, form: str) -> str:
    """The whole prompt: the question before the context and after it."""
    return (
        f"{task}\n\nQuestion: {question}\n\nContext:\n{context}\n\nQuestion: {question}\n"
        f"First explain briefly, then write {form}, as in <answer>...</answer>."
    )


def generator_of(seed: int, sample_id: int, task: str) -> np.random.Generator:
    """The source of randomness of one sample of one task.

    Raises
    ------
    ValueError
        A negative seed or number.
    """
    for name, value in (("seed", seed), ("sample_id", sample_id)):
        if value < 0:
            raise ValueError(f"{name}={value}: expected at least 0")
    return np.random.default_rng([seed, sample_id, *task.encode()])


class _Distinct:
    """An endless list of different random texts, the same however much of it is asked for at a time."""

    def __init__(self, draw: Callable[[], str]) -> None:
        self._draw = draw
        self._made: list[str] = []
        self._seen: set[str] = set()

    def __getitem__(self, index: int) -> str:
        while len(self._made) <= index:
            one = self._draw()
            if one not in self._seen:
                self._seen.add(one)
                self._made.append(one)
        return self._made[index]


class _Keys:
    """An endless list of uniform numbers, by which units are sorted: a further unit moves no other."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator, self._made = generator, np.empty(0)

    def first(self, n: int) -> np.ndarray:
        if n > len(self._made):
            self._made = np.concatenate([self._made, self._generator.random(n - len(self._made))])
        return self._made[:n]


def _sized(generator: np.random.Generator, letters: np.ndarray, length: int) -> str:
    return "".join(generator.choice(letters, length))


def _identifier(generator: np.random.Generator) -> str:
    return "-".join(_sized(generator, ALPHABET, 8) for _ in range(4))


# --- the tasks ----------------------------------------------------------------------------------------------


def ruler_niah(
    count_tokens: CountTokens, max_tokens: int, seed: int, *, sample_id: int = 0, n_queries: int = 4
) -> Sample:
    """Needles in a haystack of other needles: the values of `n_queries` of many random keys.

    Keys and values are four groups of eight random letters and digits joined by "-"; whatever is not asked
    for has the same form. To be scored by :func:`exact_match`.

    Parameters
    ----------
    count_tokens : callable
        Length of a text in tokens, for example ``lambda text: gemma.tokenize(text).ids.shape[1]``.
    max_tokens : int
        Most tokens of the prompt; at least 95 % of them are filled.
    seed, sample_id : int
        Together they determine the sample.
    n_queries : int
        Keys asked for.

    Raises
    ------
    ValueError
        `max_tokens` is too small, `n_queries` below 1, or a negative seed.
    """
    if n_queries < 1:
        raise ValueError(f"n_queries={n_queries}: expected at least 1")
    generator = generator_of(seed, sample_id, "niah")
    texts, order = _Distinct(lambda: _identifier(generator)), _Keys(generator_of(seed, sample_id, "order"))
    asked = ", ".join(texts[2 * i] for i in range(n_queries))
    question = f"Which values belong to these keys, in this order: {asked}?"

    def context_of(n: int) -> str:
        places = np.argsort(order.first(n)).tolist()
        return "\n".join(f"The value of {texts[2 * i]} is {texts[2 * i + 1]}." for i in places)

    def prompt_of(n: int) -> str:
        task = "The context lists keys and their values."
        return lay_out(task, question, context_of(n), "the values in order, separated by commas")

    n, tokens = most_units(count_tokens, max_tokens, n_queries, prompt_of)
    check_filled(max_tokens, tokens)
    answer = tuple(texts[2 * i + 1] for i in range(n_queries))
    return Sample(prompt_of(n), question, context_of(n), answer, tokens)


def ruler_vt(
    count_tokens: CountTokens,
    max_tokens: int,
    seed: int,
    *,
    sample_id: int = 0,
    n_chains: int = 8,
    n_hops: int = 4,
) -> Sample:
    """Variable tracking: the variables that hold a value, directly or through others.

    Each chain binds a value of 10000 to 99998 to a variable of five letters and hands it on `n_hops` times;
    the chains' statements are mixed, each chain's in order, among filler. To be scored by
    :func:`intersection_over_union`; the answer is in the chain's order.

    Parameters
    ----------
    count_tokens, max_tokens, seed, sample_id
        As in :func:`ruler_niah`.
    n_chains, n_hops : int
        Chains, and assignments from variable to variable in each.

    Raises
    ------
    ValueError
        `max_tokens` is too small, a size below 1, or a negative seed.
    """
    for name, size in (("n_chains", n_chains), ("n_hops", n_hops)):
        if size < 1:
            raise ValueError(f"{name}={size}: expected at least 1")
    generator = generator_of(seed, sample_id, "vt")
    names = _Distinct(lambda: _sized(generator, CAPITALS, 5))
    chains = [[names[chain * (n_hops + 1) + i] for i in range(n_hops + 1)] for chain in range(n_chains)]
    values = (generator.choice(99_998 - 10_000 + 1, n_chains, replace=False) + 10_000).tolist()
    keys = np.sort(generator.random((n_chains, n_hops + 1)), axis=1).ravel()
    statements = [line for chain, value in zip(chains, values, strict=True) for line in _chain(chain, value)]
    fillers = _Keys(generator_of(seed, sample_id, "filler"))
    question = f"Which variables hold the value {values[0]}?"

    def context_of(n: int) -> str:
        units = [*statements, *[FILLER] * n]
        return "\n".join(units[i] for i in np.argsort(np.concatenate([keys, fillers.first(n)])).tolist())

    def prompt_of(n: int) -> str:
        task = "The context binds values to variables, and variables to other variables."
        return lay_out(task, question, context_of(n), f"the {n_hops + 1} variables, separated by commas")

    n, tokens = most_units(count_tokens, max_tokens, 0, prompt_of)
    check_filled(max_tokens, tokens)
    return Sample(prompt_of(n), question, context_of(n), tuple(chains[0]), tokens)


def _chain(variables: Sequence[str], value: int) -> list[str]:
    hops = pairwise(variables)
    return [f"VAR {variables[0]} = {value}.", *(f"VAR {after} = VAR {before}." for before, after in hops)]


def ruler_cwe(
    count_tokens: CountTokens,
    max_tokens: int,
    seed: int,
    *,
    sample_id: int = 0,
    n_common: int = 10,
    n_repeats: int = 30,
    n_rare_repeats: int = 3,
) -> Sample:
    """Common word extraction: which words of a long numbered list come up most often?

    `n_common` words come `n_repeats` times, as many others as fit `n_rare_repeats` times. Words are English
    nouns; once these are used up, two of them written as one. To be scored by
    :func:`intersection_over_union`.

    Parameters
    ----------
    count_tokens, max_tokens, seed, sample_id
        As in :func:`ruler_niah`.
    n_common, n_repeats, n_rare_repeats : int
        Common words, and how often these and the others come.

    Raises
    ------
    ValueError
        `max_tokens` is too small, a size below 1, rare words that are not rarer, or a negative seed.
    """
    for name, size in (("n_common", n_common), ("n_rare_repeats", n_rare_repeats)):
        if size < 1:
            raise ValueError(f"{name}={size}: expected at least 1")
    if n_repeats <= n_rare_repeats:
        raise ValueError(f"n_repeats={n_repeats}: expected more than n_rare_repeats={n_rare_repeats}")
    generator = generator_of(seed, sample_id, "cwe")
    words = _word_list(generator)
    keys = _Keys(generator_of(seed, sample_id, "order"))
    question = f"Which {n_common} words come up most often in the list?"

    def context_of(n: int) -> str:
        listed = [words[i] for i in range(n_common) for _ in range(n_repeats)]
        listed += [words[n_common + i] for i in range(n) for _ in range(n_rare_repeats)]
        shuffled = [listed[i] for i in np.argsort(keys.first(len(listed))).tolist()]
        return " ".join(f"{place}. {word}" for place, word in enumerate(shuffled, start=1))

    def prompt_of(n: int) -> str:
        task = "The context is a numbered list of words, in which some words come up again and again."
        return lay_out(task, question, context_of(n), f"the {n_common} words, separated by commas")

    n, tokens = most_units(count_tokens, max_tokens, 1, prompt_of)
    check_filled(max_tokens, tokens)
    answer = tuple(words[i] for i in range(n_common))
    return Sample(prompt_of(n), question, context_of(n), answer, tokens)


def _word_list(generator: np.random.Generator) -> _Distinct:
    """The nouns in random order, then pairs of them written as one word."""
    left = list(generator.permutation(NOUNS))

    def draw() -> str:
        return str(left.pop()) if left else "".join(generator.choice(NOUNS, 2))

    return _Distinct(draw)
