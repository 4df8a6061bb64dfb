"""Long stories of a travelling merchant, with questions that need one fact, a missing fact or two facts.

Three tasks after "The Sparse Frontier" (2025, section on the Story tasks): the structure and the sizes of
the word banks are the paper's, the words and sentences our own. Every chapter has a place, a character met
there, an event, three sentences of dialogue, one purchase, with probability one half a sale of something
bought earlier, a farewell and a conclusion. Samples fill 95 to 100 % of `max_tokens`, as in
`sparsebook.data.ruler`.

>>> def count(text):
...     return len(text.split())
>>> sample = story_multihop(count, 1500, seed=0)
>>> sample.answer[0] in sample.context
True
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from sparsebook.data.ruler import CountTokens, Sample, check_filled, generator_of, lay_out, most_units

HERO = "Mirela"
SALE_PROBABILITY = 0.5
DIALOGUE_SENTENCES = 3


def _listed(text: str) -> tuple[str, ...]:
    """The items of a text, separated by commas, their inner blanks made single."""
    return tuple(" ".join(item.split()) for item in text.split(","))


LOCATIONS = _listed(
    """
    the harbour market, the old mill, the salt quay, the copper bazaar, the monastery garden, the river
    ferry, the hilltop observatory, the glassworkers' lane, the winter palace, the fishing village, the
    caravan camp, the toll bridge, the vineyard terrace, the clock tower, the mountain pass, the royal
    stables, the weavers' hall, the flooded quarry, the lighthouse island, the printing house, the tea
    plantation, the ruined abbey, the floating theatre, the miners' canteen, the orchard gate, the
    customs house, the spice warehouse, the frozen lake, the shepherd's hut, the city library, the
    potters' yard, the tannery court, the castle kitchen, the desert well, the rope bridge, the
    cathedral square, the botanical glasshouse, the shipwrights' dock, the beekeepers' meadow, the
    northern railway, the chess café, the paper mill, the southern gate, the opera cellar, the thermal
    baths, the village school, the windmill ridge, the coal harbour, the marble steps, the puppet
    theatre, the post station, the fortress wall, the lemon grove, the night market, the cider press,
    the mapmakers' street, the canal lock, the guild hall, the smugglers' cove, the pilgrim inn, the
    bell foundry, the horse fair, the sugar refinery, the moss forest
    """
)
CHARACTERS = _listed(
    """
    Ada the blacksmith, Bruno the baker, Celia the surveyor, Dmitri the ferryman, Elif the apothecary,
    Farid the scribe, Greta the carpenter, Hugo the falconer, Ines the locksmith, Jonas the beekeeper,
    Kamala the dyer, Leopold the judge, Mina the acrobat, Nils the whaler, Odile the perfumer, Pavel the
    stonemason, Quinta the gardener, Rashid the astronomer, Sigrid the brewer, Tomas the chandler,
    Ursula the midwife, Viktor the clockmaker, Wanda the saddler, Xaver the organist, Yara the
    cartographer, Zoltan the fiddler, Amina the potter, Boris the toll keeper, Chiara the painter,
    Dragan the shepherd, Esther the bookbinder, Felix the cooper, Gudrun the miller, Hamid the jeweller,
    Ivana the glassblower, Jasper the gamekeeper, Katya the tailor, Lorenzo the cook, Magda the
    herbalist, Naveen the papermaker, Olga the furrier, Pablo the harpist, Renata the printer, Stefan
    the cobbler, Teodora the weaver, Ulrich the notary, Vera the fishmonger, Wilhelm the engraver,
    Zeynep the archivist
    """
)
EVENTS = _listed(
    """
    a sudden thunderstorm, a wedding procession, a chess tournament, a lantern festival, a small
    earthquake, a solar eclipse, a boat race, a puppet show, a kitchen fire, a public auction, a swarm
    of bees, a royal visit, a harvest dance, a sandstorm, a duel of poets, a snowfall out of season, a
    broken dam, a horse race, a midnight concert, a spelling contest
    """
)
ADJECTIVES = _listed(
    """
    ancient, battered, carved, curious, delicate, engraved, faded, gilded, heavy, hollow, ornate,
    painted, polished, rare, simple, slender, tarnished, twisted
    """
)
MATERIALS = _listed(
    """
    amber, bone, brass, bronze, clay, copper, crystal, ebony, iron, ivory, jade, marble, pewter, silver,
    walnut
    """
)
TYPES = _listed(
    """
    amulet, astrolabe, bell, bracelet, candlestick, casket, comb, compass, dagger, figurine, flute,
    goblet, hourglass, inkwell, key, lantern, locket, mirror, ring, spoon, thimble
    """
)
ITEMS = tuple(" ".join(words) for words in product(ADJECTIVES, MATERIALS, TYPES))

BUYING = (
    "{hero} bought the {item} after a short haggle.",
    "For a handful of coins {hero} purchased the {item}.",
    "{hero} could not resist and acquired the {item}.",
    "After some hesitation {hero} paid for the {item} and packed it away.",
    "The {item} caught the eye of {hero}, who bought it at once.",
    "{hero} counted out her money and purchased the {item}.",
    "A fair price was named, and {hero} acquired the {item}.",
    "{hero} struck a bargain and bought the {item}.",
    "Before noon {hero} had paid for the {item} in full.",
)
SELLING = (
    "{hero} sold the {item} to a passing collector.",
    "With some regret {hero} parted with the {item} for a good price.",
    "A stranger offered silver, and {hero} sold the {item}.",
    "{hero} found a new owner for the {item} and pocketed the coins.",
    "To lighten her load {hero} traded away the {item}.",
)
DIALOGUE = (
    "“The roads are worse every year,” {who} complained.",
    "“You have come a long way,” said {who}.",
    "“Sit down, there is soup on the fire,” said {who}.",
    "“Nobody here trusts the new coins,” {who} whispered.",
    "“I knew your grandmother,” {who} remarked.",
    "“Have you any news from the coast?” asked {who}.",
    "“My knees tell me that it will rain,” {who} sighed.",
    "“Prices will fall before the winter,” {who} predicted.",
    "“I never sleep well under a full moon,” {who} admitted.",
    "“That mule of yours has character,” {who} laughed.",
    "“Mind the third step, it is loose,” {who} warned.",
    "“The mayor wants a statue of himself,” {who} said with a grin.",
    "“We used to have two bakeries,” {who} recalled.",
    "“A merchant should travel light,” {who} advised.",
    "“I have read that book twice,” {who} said.",
    "“The dogs here bark at everybody,” {who} explained.",
    "“Come back when the plums are ripe,” {who} suggested.",
    "“My brother went to sea and never wrote,” {who} confided.",
)
FAREWELL = (
    "They parted with a handshake.",
    "They wished each other dry roads.",
    "They promised to write.",
    "They waved until the bend of the road.",
    "They said goodbye without many words.",
    "They shared a last cup of tea.",
)
CONCLUSION = (
    "{hero} slept soundly that night.",
    "{hero} wrote a few lines in her diary before bed.",
    "{hero} checked the straps of her bags and moved on.",
    "By evening {hero} was on the road again.",
    "{hero} counted the stars and thought of home.",
    "That day stayed with {hero} for a long time.",
)
EXTRA = (
    "The wind smelled of smoke and apples.",
    "Somewhere a dog barked twice and fell silent.",
    "Children chased a hoop down the slope.",
    "A flag hung limp above the roofs.",
    "The bread of the region was dark and sour.",
    "Two cats watched from a warm wall.",
    "The mule refused to cross the shadow of a tree.",
    "An old song drifted from an open window.",
    "Dust lay thick upon the shutters.",
    "The tea was too sweet, as always there.",
    "A cart had lost its wheel by the roadside.",
    "Swallows flew low before the dusk.",
)


@dataclass(frozen=True)
class _Chapter:
    """What happens in one chapter; texts are rendered from it."""

    location: str
    character: str
    event: str
    bought: str
    sold: str | None
    hides_purchase: bool
    wording: tuple[int, ...]


@dataclass(frozen=True)
class _Story:
    """A story that can be made as long as one likes: chapter i does not depend on how many there are."""

    seed: int
    sample_id: int
    task: str

    def _ordered(self, bank: Sequence[str], name: str, n: int) -> list[str]:
        """The first `n` of a word bank in the order in which the story comes to them, or all there are."""
        generator = generator_of(self.seed, self.sample_id, f"{self.task} {name}")
        return [bank[i] for i in generator.permutation(len(bank))[:n].tolist()]

    def chapters(self, n: int, hidden: Sequence[int] = (), cue: bool = True) -> list[_Chapter]:
        """The first `n` chapters.

        Parameters
        ----------
        n : int
        hidden : chapters, from 0, whose purchase the text does not tell
        cue : whether what was bought there may still be sold later
        """
        if n > len(ITEMS):
            raise ValueError(f"the story would need {n} chapters: expected at most {len(ITEMS)}, one an item")
        places = self._ordered(LOCATIONS, "locations", n)
        people = self._ordered(CHARACTERS, "characters", n)
        events = self._ordered(EVENTS, "events", n)
        items = self._ordered(ITEMS, "items", n)
        owned: list[str] = []
        made = []
        for i in range(n):
            generator = generator_of(self.seed, self.sample_id, f"{self.task} chapter {i}")
            wording = tuple(generator.integers(0, 2**31, 16).tolist())
            sold = None
            if generator.random() < SALE_PROBABILITY and owned:
                sold = owned.pop(int(generator.integers(len(owned))))
            if cue or i not in hidden:
                owned.append(items[i])
            # Banks shorter than the story are gone through again.
            where, who, what = (bank[i % len(bank)] for bank in (places, people, events))
            made.append(_Chapter(where, who, what, items[i], sold, i in hidden, wording))
        return made


def _tell(chapter: _Chapter, number: int, n_extra: int) -> str:
    """The text of one chapter; `number` counts from 1."""
    word = iter(chapter.wording)

    def one_of(bank: Sequence[str], **names: str) -> str:
        return bank[next(word) % len(bank)].format(hero=HERO, **names)

    first = next(word) % len(DIALOGUE)
    lines = [
        f"{HERO} arrived at {chapter.location}.",
        f"There she met {chapter.character}.",
        f"The talk of the day was {chapter.event}.",
        *(DIALOGUE[(first + 5 * i) % len(DIALOGUE)] for i in range(DIALOGUE_SENTENCES)),
    ]
    lines = [line.format(who=chapter.character.split()[0]) for line in lines]
    purchase = one_of(BUYING, item=chapter.bought)
    lines += [] if chapter.hides_purchase else [purchase]
    sale = one_of(SELLING, item=chapter.sold or "")
    lines += [sale] if chapter.sold else []
    lines += [one_of(FAREWELL), one_of(CONCLUSION)]
    start = next(word)
    lines += [EXTRA[(start + i) % len(EXTRA)] for i in range(n_extra)]
    return f"Chapter {number}\n" + " ".join(lines)


def _context(chapters: Sequence[_Chapter], n_extra: int) -> str:
    """The chapters' texts, further sentences dealt out to them in turn."""
    each, more = divmod(n_extra, len(chapters))
    told = [_tell(one, i + 1, each + (i < more)) for i, one in enumerate(chapters)]
    return "\n\n".join(told)


_TASK = f"The context is a story in chapters about {HERO}, a travelling merchant."


# --- the tasks ----------------------------------------------------------------------------------------------


def story_retrieval(
    count_tokens: CountTokens, max_tokens: int, seed: int, *, sample_id: int = 0, n_questions: int = 16
) -> Sample:
    """Single facts: where, whom, what event, what purchase in a given chapter, `n_questions` times.

    The answers are in the order of the questions. To be scored by :func:`sparsebook.data.ruler.exact_match`.

    Parameters
    ----------
    count_tokens : callable
        Length of a text in tokens, for example ``lambda text: gemma.tokenize(text).ids.shape[1]``.
    max_tokens : int
        Most tokens of the prompt; at least 95 % of them are filled.
    seed, sample_id : int
        Together they determine the sample.
    n_questions : int
        Facts asked for.

    Raises
    ------
    ValueError
        `max_tokens` is too small for a quarter as many chapters as questions, `n_questions` is below 1, or a
        negative seed.
    """
    _check_count("n_questions", n_questions)
    story = _Story(seed, sample_id, "retrieval")
    least = -(-n_questions // len(_FACTS))

    def asked(chapters: Sequence[_Chapter]) -> tuple[str, tuple[str, ...]]:
        generator = generator_of(seed, sample_id, "retrieval questions")
        chosen = generator.permutation(len(chapters) * len(_FACTS))[:n_questions]
        pairs = [divmod(int(one), len(_FACTS)) for one in chosen]
        texts = [_FACTS[fact][0].format(hero=HERO, number=i + 1) for i, fact in pairs]
        question = " ".join(f"({place}) {text}" for place, text in enumerate(texts, start=1))
        return question, tuple(getattr(chapters[i], _FACTS[fact][1]) for i, fact in pairs)

    form = "the answers in order, separated by commas"
    return _sample(count_tokens, max_tokens, least, story.chapters, asked, form)


def story_filtering(
    count_tokens: CountTokens,
    max_tokens: int,
    seed: int,
    *,
    sample_id: int = 0,
    n_without: int = 3,
    cue: bool = True,
) -> Sample:
    """What is missing: the `n_without` chapters in which nothing was bought.

    To be scored by :func:`sparsebook.data.ruler.intersection_over_union`; the answer is the numbers of the
    chapters.

    Parameters
    ----------
    count_tokens, max_tokens, seed, sample_id
        As in :func:`story_retrieval`.
    n_without : int
        Chapters whose purchase is taken out.
    cue : bool
        The paper's generator takes out the sentence alone, so that a later chapter may sell what was never
        bought, which gives the answer away in part; that is what True does. With False such sales do not
        happen.

    Raises
    ------
    ValueError
        As :func:`story_retrieval`; `n_without` below 1.
    """
    _check_count("n_without", n_without)
    story = _Story(seed, sample_id, "filtering")

    def hidden(n: int) -> list[int]:
        generator = generator_of(seed, sample_id, "filtering hidden")
        return sorted(generator.permutation(n)[:n_without].tolist())

    def chapters(n: int) -> list[_Chapter]:
        return story.chapters(n, hidden(n), cue)

    def asked(made: Sequence[_Chapter]) -> tuple[str, tuple[str, ...]]:
        question = f"In which {n_without} chapters did {HERO} buy nothing?"
        return question, tuple(str(i + 1) for i, one in enumerate(made) if one.hides_purchase)

    # At least one chapter with a purchase, or there would be nothing to tell apart.
    form = f"the {n_without} numbers, separated by commas"
    return _sample(count_tokens, max_tokens, n_without + 1, chapters, asked, form)


def story_multihop(count_tokens: CountTokens, max_tokens: int, seed: int, *, sample_id: int = 0) -> Sample:
    """Two steps: the item bought in the chapter before the one in which a given item was bought.

    To be scored by :func:`sparsebook.data.ruler.exact_match`.

    Parameters
    ----------
    count_tokens, max_tokens, seed, sample_id
        As in :func:`story_retrieval`.

    Raises
    ------
    ValueError
        As :func:`story_retrieval`.
    """
    story = _Story(seed, sample_id, "multihop")

    def asked(chapters: Sequence[_Chapter]) -> tuple[str, tuple[str, ...]]:
        generator = generator_of(seed, sample_id, "multihop question")
        target = 1 + int(generator.random() * (len(chapters) - 1))
        question = (
            f"Which item did {HERO} buy in the chapter right before the one in which she bought the "
            f"{chapters[target].bought}?"
        )
        return question, (chapters[target - 1].bought,)

    return _sample(count_tokens, max_tokens, 2, story.chapters, asked, "the item")


_FACTS = (
    ("Where did {hero} arrive in chapter {number}?", "location"),
    ("Whom did {hero} meet in chapter {number}?", "character"),
    ("What was the talk of the day in chapter {number}?", "event"),
    ("Which item did {hero} buy in chapter {number}?", "bought"),
)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")


def _sample(
    count_tokens: CountTokens,
    max_tokens: int,
    least_chapters: int,
    chapters_of: Callable[[int], list[_Chapter]],
    asked: Callable[[Sequence[_Chapter]], tuple[str, tuple[str, ...]]],
    form: str,
) -> Sample:
    """As many chapters as fit, then as many further sentences."""
    chapters_of = cache(chapters_of)

    def prompt_of(n_chapters: int, n_extra: int) -> str:
        chapters = chapters_of(n_chapters)
        return lay_out(_TASK, asked(chapters)[0], _context(chapters, n_extra), form)

    n_chapters, _ = most_units(count_tokens, max_tokens, least_chapters, lambda n: prompt_of(n, 0))
    n_extra, tokens = most_units(count_tokens, max_tokens, 0, lambda n: prompt_of(n_chapters, n))
    check_filled(max_tokens, tokens)
    chapters = chapters_of(n_chapters)
    question, answer = asked(chapters)
    context = _context(chapters, n_extra)
    return Sample(prompt_of(n_chapters, n_extra), question, context, answer, tokens)
