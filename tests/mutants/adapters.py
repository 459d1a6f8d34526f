"""Mistakes in adapters: what they are, whose rows follow them, and what is kept under them."""

from __future__ import annotations

from mutants.mutant import of

PEFT = "test_a_merged_adapter_of_peft_has_the_logits_of_peft"
MIXED = "test_base_and_adapters_in_one_batch_answer_as_alone_and_as_merged"

MUTANTS = [
    *of(
        "model/adapters/settings.py",
        "model/adapters/test_peft_folder.py",
        ("math.sqrt(rank) if self.use_rslora", "rank if self.use_rslora"),
        ('if (bias := given.get("bias")) not in (None, "none"):', 'if (bias := given.get("bias")) is None:'),
    ),
    *of(
        "model/adapters/peft_folder.py",
        "model/adapters/test_peft_folder.py",
        ("if not torch.isfinite(tensor).all():", "if False:"),
        ("if part in self.layers.setdefault(ours, {}):", "if part in self.layers.setdefault(ours, {}) and False:"),
    ),
    *of(
        "model/adapters/lora.py",
        "model/adapters/test_merge.py",
        ("(magnitude / weight.norm(dim=1))", "(magnitude / weight_NK.norm(dim=1))"),
    ),
    *of(
        "model/adapters/lora.py",
        "parity/test_adapter_parity.py",
        ("+ self.scale * (", "+ (", PEFT),
    ),
    *of(
        "model/adapters/settings.py",
        "parity/test_adapter_parity.py",
        ("        rank = self.rank_of(layer)\n", "        rank = self.rank\n", PEFT),
        (
            "for key, alpha in self.alpha_pattern.items() if",
            "for key, alpha in self.alpha_pattern.items() if False and",
            PEFT,
        ),
    ),
    *of(
        "model/adapters/write.py",
        "model/adapters/test_peft_folder.py",
        ("update.scale * ranks[ours]", "update.scale", "test_what_is_written_is_read_back"),
        ('"use_rslora": False', '"use_rslora": True', "test_what_is_written_is_read_back"),
    ),
    *of(
        "model/adapters/peft_folder.py",
        "model/adapters/test_peft_folder.py",
        (
            "digest = fingerprint(folder, ADAPTER_FILES)",
            "digest = fingerprint(folder, (WEIGHTS,))",
            "test_the_digest_tells_adapters_apart_by_weights_and_by_settings",
        ),
    ),
    *of(
        "model/adapters/layers.py",
        "engine/test_engine_adapters.py",
        ("update.scale * update.b_NR.to(device)", "update.b_NR.to(device)", MIXED),
        ("delta = F.linear(F.linear(x[rows],", "delta = F.linear(F.linear(x,", MIXED),
    ),
    *of(
        "model/adapters/merge.py",
        "model/adapters/test_merge.py",
        ("and fp16_linear.can_round(merged)", ""),
        ("decoder.config = replace(decoder.config, tie_word_embeddings=False)", "pass"),
    ),
    *of(
        "model/checkpoint.py",
        "api/test_adapter.py",
        ("narrow=narrow)", "narrow=False)", "test_a_merged_decoder_takes_no_more_memory_on_a_cpu_than_its_base"),
    ),
    *of(
        "kernels/linear/fp16_linear.py",
        "kernels/test_cpu_linear.py",
        ("_BEYOND_FP16 = 0x1FFF", "_BEYOND_FP16 = 0x0FFF", "test_only_what_loses_nothing_is_narrowed"),
    ),
    *of(
        "model/adapters/layers.py",
        "engine/test_engine_adapters.py",
        ("delta = part.factor_n * delta + (part.factor_n - 1) * plain", "delta = part.factor_n * delta"),
        ("plain = plain - bias[part.start : part.end]", "pass"),
        ("            start = end\n", "            start = 0\n"),
        ("torch.roll(identity, first, 1)", "torch.roll(identity, 0, 1)"),
    ),
    *of(
        "model/packing.py",
        "engine/test_engine_adapters.py",
        ("if rows[-1] - rows[0] + 1 == len(rows):", "if True:"),
        ("owners[row]", "owners[place]"),
    ),
    *of(
        "engine/request.py",
        "engine/test_engine_adapters.py",
        ("self.salt += self.adapter.digest.encode()", "pass"),
        ("and self.adapter.touches_vision else None", "else None"),
        ('tower = "" if self.vision_adapter is None', 'tower = "" if True'),
    ),
    *of(
        "engine/runners/torch_runner.py",
        "engine/test_engine_adapters.py",
        ("            and not batch.adapter_rows\n", ""),
        ("[*batch.chosen_adapter_rows(rows).items()]", "[*batch.adapter_rows.items()]"),
    ),
    *of(
        "engine/sampling/prompt_lookup.py",
        "engine/test_engine_adapters.py",
        ("Segment(len(ids), self._start, adapter=adapter)", "Segment(len(ids), self._start)"),
    ),
    *of(
        "model/directory.py",
        "api/test_adapter.py",
        ('f"{own} {fingerprint(self.adapter, ADAPTER_FILES)}"', 'f"{own}"'),
    ),
]
