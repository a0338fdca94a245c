"""Small text models with random weights, in the files and folders that the real ones come in; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from ldm.text.clip import ClipArchitecture
from ldm.text.hf import Architecture

CAPTIONS = (
    "a photograph of an astronaut riding a horse",
    "",
    "red",
    "Two CATS, and a dog's (blue) hat!",
    " ".join(["a very long caption about a cat and a dog"] * 40),
)
CLIP = ClipArchitecture(width=32, heads=4, layers=3, projection=16)
QUICK_CLIP = ClipArchitecture(width=32, heads=4, layers=3, projection=16, quick_gelu=True)
T5_SETTINGS: dict[str, Any] = {
    "d_model": 80,  # more than two tiny CLIPs side by side, as with SD3
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_heads": 4,
    "vocab_size": 300,
    "feed_forward_proj": "gated-gelu",
}
T5 = Architecture(model_type="t5", settings=T5_SETTINGS)
LETTERS = "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.'!()"


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """The same weights each time, and such that no layer is silent: fresh models have many that are almost zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_scale = p.ndim == 1 and name.endswith("weight")  # of a norm
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + float(is_scale))
    return model.eval()


def t5_model() -> Any:
    return randomize(transformers.T5EncoderModel(transformers.T5Config(**T5_SETTINGS)))


@cache
def t5_tokenizer() -> Any:
    """A unigram model of letters and a few words."""
    words = ["\u2581a", "\u2581red", "\u2581cat", "\u2581and", "\u2581the"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -6.0) for letter in LETTERS] + [(word, -2.0) for word in words]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


@cache
def clip_tokenizer(padding: str = "<|endoftext|>") -> Any:
    """Hugging Face's class around the vocabulary that open_clip brings along."""
    from open_clip.tokenizer import SimpleTokenizer

    bpe = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(piece, piece): number for piece, number in bpe.encoder.items()}
    return transformers.CLIPTokenizer(
        vocab=vocab, merges=list(bpe.bpe_ranks), model_max_length=77, pad_token=padding
    )


def clip_config(sizes: ClipArchitecture) -> Any:
    return transformers.CLIPTextConfig(
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        projection_dim=sizes.projection,
        hidden_act="quick_gelu" if sizes.quick_gelu else "gelu",
        vocab_size=sizes.vocab_size,
        eos_token_id=49407,
        bos_token_id=49406,
        pad_token_id=49407,
    )


def hf_clip(sizes: ClipArchitecture, *, projected: bool) -> Any:
    made = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomize(made(clip_config(sizes)))


def open_clip_model(sizes: ClipArchitecture) -> Any:
    """A whole CLIP of open_clip, pictures included."""
    import open_clip

    return randomize(
        open_clip.CLIP(
            embed_dim=sizes.projection,
            vision_cfg={"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
            text_cfg={
                "context_length": sizes.context_length,
                "vocab_size": sizes.vocab_size,
                "width": sizes.width,
                "heads": sizes.heads,
                "layers": sizes.layers,
            },
            quick_gelu=sizes.quick_gelu,
        )
    )


def as_open_clip(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a Hugging Face CLIP text model under open_clip's names."""
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.": "ln_final.",
        "encoder.layers.": "transformer.resblocks.",
        "self_attn.out_proj.": "attn.out_proj.",
        "layer_norm1.": "ln_1.",
        "layer_norm2.": "ln_2.",
        "mlp.fc1.": "mlp.c_fc.",
        "mlp.fc2.": "mlp.c_proj.",
    }
    state: dict[str, torch.Tensor] = {}
    thirds: dict[str, dict[str, torch.Tensor]] = {}
    for name, x in model.state_dict().items():
        if name == "text_projection.weight":
            state["text_projection"] = x.T.contiguous()
            continue
        name = name.removeprefix("text_model.")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        block, found, rest = name.partition("self_attn.")
        if found:
            which, kind = rest.split("_proj.")
            thirds.setdefault(f"{block}attn.in_proj_{kind}", {})[which] = x
        else:
            state[name] = x
    state |= {name: torch.cat([parts[k] for k in "qkv"]) for name, parts in thirds.items()}
    if "text_projection" not in state:
        width = state["positional_embedding"].shape[1]
        state["text_projection"] = torch.zeros(width, model.config.projection_dim)
    return state


def save_t5(folder: Path, model: Any = None, *, model_in: str = "", tokenizer_in: str = "") -> Any:
    """Write model and tokenizer as ``save_pretrained`` does; returns the model."""
    model = model or t5_model()
    model.save_pretrained(folder / model_in)
    t5_tokenizer().save_pretrained(folder / tokenizer_in)
    return model
