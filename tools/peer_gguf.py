#!/usr/bin/env python3
"""peer_gguf.py - a LLaMA checkpoint as GGUF, and a text as token ids, for `peer kl`.

    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install -r tools/requirements_peer.txt
    /tmp/venv/bin/python tools/peer_gguf.py model MODEL OUT.gguf
    /tmp/venv/bin/python tools/peer_gguf.py ids MODEL TEXT OUT.ids

For developers; no part of the program. model: all tensors as float32, which holds F16, BF16 and
F32 alike, so that peer_llama_cpp.c's `quantize` starts from the checkpoint's own values; no
vocabulary. Rows of q_proj and k_proj are put in the order of ggml's rope, which turns
neighbouring channels where Hugging Face's turns channel i and i + D / 2 of a head:
llama.cpp's own converter does the same. Refused: anything that this file does not map
(biases, rope scaling, other families; llama.cpp has no OPT). ids: the file's bytes tokenised
once, nothing added, as `flatiron eval` does; one id a line.
SPDX-License-Identifier: MIT"""
import json
import os
import struct
import sys

import gguf
import numpy as np
import tokenizers

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens.weight": "token_embd.weight",
             "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def as_float32(raw, dtype, shape):
    if dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    elif dtype in ("F16", "F32"):
        values = np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype("<f4")
    else:
        sys.exit(f"peer_gguf.py: weights of type {dtype}")
    return values.reshape(shape)


def tensors(directory):
    """(name, float32 array) of every tensor of every safetensors file."""
    for file in sorted(os.listdir(directory)):
        if not file.endswith(".safetensors"):
            continue
        with open(os.path.join(directory, file), "rb") as f:
            data = f.read()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = t["data_offsets"]
                yield name, as_float32(data[start + begin:start + end], t["dtype"], t["shape"])


def gguf_name(name):
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    parts = name.split(".")  # model.layers.I.REST.weight
    known = LAYER_NAMES.get(".".join(parts[3:-1])) if parts[:2] == ["model", "layers"] else None
    if not known or parts[-1] != "weight":
        sys.exit(f"peer_gguf.py: no place for {name}")
    return f"blk.{parts[2]}.{known}.weight"


def in_ggml_order(w, n_heads):
    """Rows of each head from [2, D / 2] to [D / 2, 2]."""
    return np.ascontiguousarray(
        w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, -1).swapaxes(1, 2)).reshape(w.shape)


def add_sizes(out, config):
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        sys.exit("peer_gguf.py: only llama without rope scaling")
    n_heads = config["num_attention_heads"]
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(n_heads)
    out.add_head_count_kv(config.get("num_key_value_heads", n_heads))
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // n_heads)
    out.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")


def write_model(directory, path):
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    n_heads = {"q_proj": config["num_attention_heads"],
               "k_proj": config.get("num_key_value_heads", config["num_attention_heads"])}
    out = gguf.GGUFWriter(path, "llama")
    add_sizes(out, config)
    for name, w in tensors(directory):
        projection = name.split(".")[-2]
        if projection in n_heads:
            w = in_ggml_order(w, n_heads[projection])
        out.add_tensor(gguf_name(name), w)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_ids(directory, text, path):
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    with open(text, encoding="utf-8", newline="") as f:
        ids = tokenizer.encode(f.read(), add_special_tokens=False).ids
    with open(path, "w", encoding="ascii") as f:
        f.writelines(f"{i}\n" for i in ids)
    print(f"{len(ids)} ids")


def main():
    args = sys.argv[1:]
    if len(args) == 3 and args[0] == "model":
        write_model(args[1], args[2])
    elif len(args) == 4 and args[0] == "ids":
        write_ids(args[1], args[2], args[3])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
