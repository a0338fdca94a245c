"""``UNet`` and diffusers' UNet2DConditionModel: Stable Diffusion 1.x, 2.x, SDXL and free topologies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.interop.configs import refuse_unsupported
from ldm.interop.weights import Rule, linear
from ldm.nn.unet import NUM_SIZES, SpatialTransformer, UNet

FIXED = {  # what ours has one answer to
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": frozenset({"silu", "swish"}),
    "norm_eps": 1e-5,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": frozenset({None, "projection"}),
    "addition_embed_type": frozenset({None, "text_time"}),
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": frozenset({None, False}),
    "cross_attention_norm": None,
}
IDLE = {"sample_size", "upcast_attention", "addition_embed_type_num_heads"}  # which ours has no use for
DEFAULTS: dict[str, Any] = {  # of their class: what a config that leaves a key out means
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,  # by an old mistake of theirs, the number of heads
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "projection_class_embeddings_input_dim": None,
}
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class UNetMap:
    """UNet2DConditionModel. Where classes are told, the last of theirs is our "no class"."""

    class_name: str = "UNet2DConditionModel"
    network: type[nn.Module] = UNet

    def build(self, config: Mapping[str, Any]) -> UNet:
        read = {key for key in DEFAULTS if key not in FIXED}
        refuse_unsupported(config, fixed=FIXED, known=read | IDLE, where=self.class_name)
        given = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS}
        channels = list(given["block_out_channels"])
        levels = range(len(channels))
        down, up = given["down_block_types"], given["up_block_types"]
        attends = [self._attends(down[i], up[-1 - i]) for i in levels]
        depths = _per_level(given["transformer_layers_per_block"], len(channels))
        blocks = _per_level(given["layers_per_block"], len(channels))
        if len(set(blocks)) > 1:
            raise ValueError(
                f"{self.class_name}: layers_per_block={blocks} has no counterpart here, only one"
            )
        context = _per_level(given["cross_attention_dim"], len(channels))
        if len(set(context)) > 1:
            raise ValueError(f"{self.class_name}: cross_attention_dim={context} has no counterpart, only one")
        text_time = given["addition_embed_type"] == "text_time"
        size_features = given["addition_time_embed_dim"] if text_time else 0
        projected = text_time or given["class_embed_type"] == "projection"
        told = given["projection_class_embeddings_input_dim"] if projected else 0
        classes = given["num_class_embeds"] if given["class_embed_type"] is None else None
        return UNet(
            in_channels=given["in_channels"],
            out_channels=given["out_channels"],
            channels=channels,
            blocks_per_level=blocks[0],
            transformer_depth=[depths[i] if attends[i] else 0 for i in levels],
            middle_depth=depths[-1],
            num_heads=_per_level(given["attention_head_dim"], len(channels)),
            context_width=context[0],
            context_mask=False,
            pooled_width=told - NUM_SIZES * size_features,
            size_features=size_features,
            num_classes=0 if classes is None else classes - 1,
            num_groups=given["norm_num_groups"],
            conv_projections=not given["use_linear_projection"],
        )

    def _attends(self, down: str, up: str) -> bool:
        for answer, pair in ((True, CROSS), (False, PLAIN)):
            if (down, up) == pair:
                return answer
        raise ValueError(
            f"{self.class_name}: the blocks {down} and {up} at one level have no counterpart here"
        )

    def config(self, network: nn.Module) -> dict[str, Any]:
        assert isinstance(network, UNet)
        ours = network.architecture
        depths = list(ours["transformer_depth"])
        if ours["context_mask"]:
            self._refuse("context_mask=true: its pipelines attend to padding; say context_mask=false")
        if ours["middle_depth"] < 1 or depths[-1] not in (0, ours["middle_depth"]):
            self._refuse(
                f"middle_depth={ours['middle_depth']}: it must be at least 1, and that of the lowest level"
            )
        if ours["pooled_width"] and ours["num_classes"] and not ours["size_features"]:
            self._refuse("num_classes beside pooled_width without size_features")
        text_time = ours["size_features"] > 0
        told = ours["pooled_width"] + NUM_SIZES * ours["size_features"]
        return {
            "in_channels": ours["in_channels"],
            "out_channels": ours["out_channels"],
            "down_block_types": [CROSS[0] if depth else PLAIN[0] for depth in depths],
            "mid_block_type": FIXED["mid_block_type"],
            "up_block_types": [CROSS[1] if depth else PLAIN[1] for depth in reversed(depths)],
            "block_out_channels": list(ours["channels"]),
            "layers_per_block": ours["blocks_per_level"],
            "norm_num_groups": ours["num_groups"],
            "cross_attention_dim": ours["context_width"],
            "transformer_layers_per_block": _one_if_equal(
                [*(depth or 1 for depth in depths[:-1]), ours["middle_depth"]]
            ),
            "attention_head_dim": _one_if_equal(list(ours["num_heads"])),
            "use_linear_projection": not ours["conv_projections"],
            "class_embed_type": "projection" if told and not text_time else None,
            "addition_embed_type": "text_time" if text_time else None,
            "addition_time_embed_dim": ours["size_features"] or None,
            "num_class_embeds": ours["num_classes"] + 1 if ours["num_classes"] else None,
            "projection_class_embeddings_input_dim": told or None,
        }

    def _refuse(self, what: str) -> None:
        raise ValueError(f"diffusers' {self.class_name} cannot be this network: it has {what}")

    def call(self, theirs: Callable[..., Any], x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        config = theirs.config  # type: ignore[attr-defined]
        classes = cond.labels if config.num_class_embeds is not None else None
        added = None
        if config.class_embed_type == "projection":
            classes = cond.pooled
        if config.addition_embed_type == "text_time":
            added = {"text_embeds": cond.pooled, "time_ids": cond.sizes}
        return theirs(x, 1000.0 * t, cond.tokens, class_labels=classes, added_cond_kwargs=added).sample

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        assert isinstance(network, UNet)
        pooled = "add_embedding" if network.size_features else "class_embedding"
        return unet_rules(
            network,
            UNetNames(
                added=(f"{pooled}.linear_1", f"{pooled}.linear_2"),
                labels="class_embedding",
            ),
        )


@dataclass(frozen=True)
class UNetNames:
    """What a layout calls the parts of a U-Net; as it stands, diffusers'.

    Fields in braces: ``level`` counts resolutions from the highest, ``step`` those of the way up from the lowest,
    ``block`` layers within one; ``place`` counts all blocks of one way through, and ``slot`` is the place behind a
    layer's residual block and transformer.
    """

    time: tuple[str, str] = ("time_embedding.linear_1", "time_embedding.linear_2")
    added: tuple[str, str] = ("add_embedding.linear_1", "add_embedding.linear_2")
    labels: str = "class_embedding"
    conv_in: str = "conv_in"
    down: str = "down_blocks.{level}.resnets.{block}"
    down_transformer: str = "down_blocks.{level}.attentions.{block}"
    downsample: str = "down_blocks.{level}.downsamplers.0.conv"
    middle: str = "mid_block.resnets.{block}"
    middle_transformer: str = "mid_block.attentions.0"
    up: str = "up_blocks.{step}.resnets.{block}"
    up_transformer: str = "up_blocks.{step}.attentions.{block}"
    upsample: str = "up_blocks.{step}.upsamplers.0.conv"
    norm_out: str = "conv_norm_out"
    conv_out: str = "conv_out"
    # Of a residual block: norm1, conv1, embed, norm2, conv2, shortcut.
    residual: tuple[str, ...] = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")


def unet_rules(network: UNet, names: UNetNames, *, prefix: str = "") -> list[Rule]:
    """A rule for each tensor of ``network``; all of their names begin with ``prefix``."""
    rules: list[Rule] = []
    for ours, theirs in _parts(network, names):
        module = network.get_submodule(ours)
        theirs = prefix + theirs
        if isinstance(module, SpatialTransformer):
            conv = bool(network.architecture["conv_projections"])
            rules += _transformer(module, ours, theirs, conv_projections=conv)
        elif isinstance(module, nn.Embedding):
            rules.append(Rule(f"{ours}.weight", (f"{theirs}.weight",)))
        else:
            rules += linear(ours, theirs)
    return rules


def _parts(network: UNet, names: UNetNames) -> Iterator[tuple[str, str]]:
    """(our module, their module): layers with a weight and a bias, transformers, and the embedding of labels."""
    per_level = network.architecture["blocks_per_level"] + 1
    yield "conv_in", names.conv_in
    yield "norm_out", names.norm_out
    yield "conv_out", names.conv_out
    yield from zip(("time_embedding.mlp.0", "time_embedding.mlp.2"), names.time, strict=True)
    if network.added_embedding is not None:
        yield from zip(("added_embedding.0", "added_embedding.2"), names.added, strict=True)
    if network.label_embedding is not None:
        yield "label_embedding", names.labels

    def layer(ours: str, residual: str, transformer: str) -> Iterator[tuple[str, str]]:
        parts = ("norm1", "conv1", "embed", "norm2", "conv2", "shortcut")
        for part, name in zip(parts, names.residual, strict=True):
            if not isinstance(network.get_submodule(f"{ours}.residual.{part}"), nn.Identity):
                yield f"{ours}.residual.{part}", f"{residual}.{name}"
        if f"{ours}.transformer" in modules:
            yield f"{ours}.transformer", transformer

    modules = dict(network.named_modules())
    num_levels = len(network.down)
    for level in range(num_levels):
        for block in range(per_level - 1):
            at = {"level": level, "block": block, "place": 1 + level * per_level + block}
            ours = f"down.{level}.layers.{block}"
            yield from layer(ours, names.down.format(**at), names.down_transformer.format(**at))
        if level < num_levels - 1:
            at = {"level": level, "place": (level + 1) * per_level}
            yield f"down.{level}.downsample", names.downsample.format(**at)
    for block in range(2):
        at = {"block": block, "place": 2 * block}
        yield from layer(f"middle.{block}", names.middle.format(**at), names.middle_transformer)
    for step in range(num_levels):
        for block in range(per_level):
            at = {"step": step, "block": block, "place": step * per_level + block}
            ours = f"up.{step}.layers.{block}"
            yield from layer(ours, names.up.format(**at), names.up_transformer.format(**at))
        if step < num_levels - 1:
            slot = 2 if f"up.{step}.layers.0.transformer" in modules else 1
            at = {"step": step, "place": (step + 1) * per_level - 1, "slot": slot}
            yield f"up.{step}.upsample", names.upsample.format(**at)


def _transformer(module: SpatialTransformer, ours: str, theirs: str, *, conv_projections: bool) -> list[Rule]:
    """Theirs are called the same in diffusers and in the original layout."""
    width = module.project_in.out_features
    rules = linear(f"{ours}.norm", f"{theirs}.norm")
    for name, their_name in (("project_in", "proj_in"), ("project_out", "proj_out")):
        shape = (width, width, 1, 1) if conv_projections else None
        rules += [
            Rule(f"{ours}.{name}.weight", (f"{theirs}.{their_name}.weight",), their_shape=shape),
            Rule(f"{ours}.{name}.bias", (f"{theirs}.{their_name}.bias",)),
        ]
    for i, block in enumerate(module.blocks):
        a, b = f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}"
        qkv = tuple(f"{b}.attn1.to_{part}.weight" for part in "qkv")
        rules.append(Rule(f"{a}.attention.qkv.weight", qkv))
        rules += linear(f"{a}.attention.out", f"{b}.attn1.to_out.0")
        rules += linear(f"{a}.norm1", f"{b}.norm1")
        if block.cross_attention is not None:
            kv = tuple(f"{b}.attn2.to_{part}.weight" for part in "kv")
            rules.append(Rule(f"{a}.cross_attention.q.weight", (f"{b}.attn2.to_q.weight",)))
            rules.append(Rule(f"{a}.cross_attention.kv.weight", kv))
            rules += linear(f"{a}.cross_attention.out", f"{b}.attn2.to_out.0")
            rules += linear(f"{a}.norm2", f"{b}.norm2")
        rules += linear(f"{a}.norm3", f"{b}.norm3")
        rules += linear(f"{a}.feed_forward.up", f"{b}.ff.net.0.proj")
        rules += linear(f"{a}.feed_forward.down", f"{b}.ff.net.2")
    return rules


def _per_level(value: Any, num_levels: int) -> list[Any]:
    return [value] * num_levels if value is None or isinstance(value, int) else list(value)


def _one_if_equal(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values
