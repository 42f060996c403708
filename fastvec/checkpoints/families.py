"""Supported and refused model types: the single list for the refusal, the tests and docs/families.md.

FAMILIES lists a type if `tests/decoders/test_packed_transformers.py` compares it, with every kind of layer its
checkpoints have, against transformers one sequence at a time. Any other type is refused, because silently wrong
attention is the worst bug in this field. To add a type, add a line here and a tiny configuration in
`tests/helpers/tiny_families.py`, then run `python -m fastvec.checkpoints.families > docs/families.md`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvec.checkpoints.model_files import setting
from fastvec.checkpoints.remote_code import MODEL_TYPES
from fastvec.errors import ModelError, quoted

FAMILIES = {  # model type: example checkpoints
    "afmoe": "arcee-ai/Trinity-Mini",
    "apertus": "swiss-ai/Apertus-8B-Instruct-2509",
    "arcee": "arcee-ai/AFM-4.5B",
    "aria_text": "text decoder of rhymes-ai/Aria",
    "axk1": "skt/A.X-K1",
    "beam": "reflection/Beam-1.0-501B-A23B",
    "biogpt": "microsoft/biogpt",
    "cohere": "CohereForAI/c4ai-command-r-v01",
    "cohere2": "CohereLabs/c4ai-command-r7b-12-2024",
    "cohere2_moe": "CohereLabs/command-a-plus-05-2026",
    "ctrl": "Salesforce/ctrl",
    "cwm": "facebook/cwm",
    "dbrx": "transformers-community/dbrx-instruct",
    "deepseek_v2": "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek_v3": "deepseek-ai/DeepSeek-V3",
    "diffllama": "kajuma/DiffLlama-0.3B-handcut",
    "dots1": "rednote-hilab/dots.llm1.base",
    "ernie4_5": "baidu/ERNIE-4.5-0.3B-PT",
    "ernie4_5_moe": "baidu/ERNIE-4.5-21B-A3B-PT",
    "exaone4": "LGAI-EXAONE/EXAONE-4.0-32B",
    "exaone_moe": "LGAI-EXAONE/K-EXAONE-236B-A23B",
    "flex_olmo": "allenai/FlexOlmo-7x7B-1T",
    "flint": "RecursiveSI/flint",
    "gemma": "google/gemma-7b",
    "gemma2": "google/gemma-2-9b",
    "gemma3_text": "google/gemma-3-1b-pt, google/embeddinggemma-300m",
    "gemma3n_text": "text decoder of google/gemma-3n-E4B",
    "gemma4_text": "text decoder of google/gemma-4-e2b-it",
    "glm": "THUDM/glm-4-9b-chat",
    "glm4": "THUDM/GLM-4-9B-0414",
    "glm4_moe": "zai-org/GLM-4.5",
    "glm4_moe_lite": "zai-org/GLM-4.7-Flash",
    "gpt2": "openai-community/gpt2",
    "gpt_bigcode": "bigcode/gpt_bigcode-santacoder",
    "gpt_neox": "EleutherAI/gpt-neox-20b, EleutherAI/pythia-1b",
    "gpt_oss": "openai/gpt-oss-20b",
    "granite": "ibm-granite/granite-3.0-8b-base",
    "granite_swa": "ibm-granite/granite-swash-2b",
    "granitemoe": "ibm-granite/granite-3.0-1b-a400m-base",
    "granitemoe_swa": "ibm-granite/granite-swash-3b-a600m",
    "granitemoeshared": "ibm-research/moe-7b-1b-active-shared-experts",
    "helium": "kyutai/helium-1-preview",
    "hrm_text": "sapientinc/HRM-Text-1B",
    "hunyuan_v1_dense": "tencent/Hunyuan-7B-Instruct",
    "hunyuan_v1_moe": "tencent/Hunyuan-A13B-Instruct",
    "hy_v3": "tencent/Hy3-preview",
    "hyperclovax": "naver-hyperclovax/HyperCLOVAX-SEED-Think-14B",
    "jais2": "inceptionai/Jais-2-8B-Chat",
    "jetmoe": "jetmoe/jetmoe-8b",
    "kolibri1": "Aleph-Alpha/Kolibri-1",
    "laguna": "poolside/laguna-XS.2",
    "llama": "meta-llama/Llama-2-7b-hf, meta-llama/Llama-3.2-1B",
    "longcat_flash": "meituan-longcat/LongCat-Flash-Chat",
    "mellum": "JetBrains/Mellum2-12B-A2.5B-Base",
    "mimo_v2_flash": "XiaomiMiMo/MiMo-V2-Flash",
    "minicpm3": "openbmb/MiniCPM3-4B",
    "minimax_m2": "MiniMaxAI/MiniMax-M2",
    "ministral": "mistralai/Ministral-8B-Instruct-2410",
    "ministral3": "text decoder of mistralai/Ministral-3-8B-Base-2512",
    "mistral": "mistralai/Mistral-7B-v0.1, intfloat/e5-mistral-7b-instruct",
    "mistral4": "text decoder of mistralai/Mistral-Small-4-119B-2603",
    "mixtral": "mistralai/Mixtral-8x7B-v0.1",
    "modernbert-decoder": "jhu-clsp/ettin-decoder-150m",
    "nanochat": "karpathy/nanochat-d32",
    "nemotron": "nvidia/Minitron-8B-Base",
    "olmo": "allenai/OLMo-7B-hf",
    "olmo2": "allenai/OLMo-2-1124-7B",
    "olmo3": "allenai/Olmo-3-7B-Instruct",
    "olmoe": "allenai/OLMoE-1B-7B-0924",
    "opt": "facebook/opt-350m",
    "persimmon": "adept/persimmon-8b-base",
    "phi": "microsoft/phi-1",
    "phi3": "microsoft/Phi-3-mini-4k-instruct, microsoft/phi-4",
    "phimoe": "microsoft/Phi-3.5-MoE-instruct",
    "qwen2": "Qwen/Qwen2-7B, Qwen/Qwen2.5-0.5B",
    "qwen2_moe": "Qwen/Qwen1.5-MoE-A2.7B",
    "qwen3": "Qwen/Qwen3-8B, Qwen/Qwen3-Embedding-0.6B",
    "qwen3_moe": "Qwen/Qwen3-30B-A3B-Base",
    "seed_oss": "ByteDance-Seed/Seed-OSS-36B-Instruct",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
    "solar_open": "upstage/Solar-Open-100B",
    "stablelm": "stabilityai/stablelm-3b-4e1t",
    "starcoder2": "bigcode/starcoder2-7b",
    "vaultgemma": "google/vaultgemma-1b",
    "youtu": "tencent/Youtu-LLM-2B",
}

REFUSED = {  # reason: model types
    "is an encoder, not a decoder": (
        "albert bert bert-generation big_bird camembert canine convbert data2vec-text deberta deberta-v2 distilbert "
        "electra ernie esm eurobert flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm longformer luke "
        "megatron-bert mobilebert modernbert mpnet nomic_bert nystromformer rembert roberta roberta-prelayernorm "
        "roc_bert roformer squeezebert xlm xlm-roberta xlm-roberta-xl xlnet xmod"
    ),
    "is an encoder-decoder, not a decoder": (
        "bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe "
        "pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma t5gemma2 umt5 whisper"
    ),
    "carries information between tokens by recurrence, convolution or linear attention, which is causal only": (
        "bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid inkling2_text inkling_text jamba kimi_linear "
        "lfm2 lfm2_moe lfm3 mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text "
        "qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2 zaya"
    ),
    "computes its attention itself, outside transformers' attention interface": (
        "bloom codegen cpmant falcon gpt_neo gpt_neox_japanese gptj mpt openai-gpt reformer xglm"
    ),
    "attends to a selection of tokens that it computes itself": (
        "axk2 deepseek_v32 deepseek_v4 doge dots3_note dots3_note_text glm_moe_dsa hy_v4 minimax_m3_vl_text"
    ),
    "quantizes in its linear layers, by code that its checkpoints' quantization settings add": "bitnet",
    "attends in chunks and scales its queries by their place in the batch": "llama4_text",
    "is multimodal, and only text decoders are supported": (
        "aria emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git idefics3 internvl llama4 llava llava_next mistral3 "
        "mllama moshi paligemma phi4_multimodal qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_vl qwen3_omni_moe qwen3_vl "
        "qwen3_vl_moe smolvlm"
    ),
}


def model_types(config: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """Return the type that the `config.json` at `path` states, and the type of transformers that it is run as.

    Raises ModelError if it states none, or fastvec does not run the model.
    """
    stated: str | None = setting(config, "model_type", str, path)
    if stated is None:
        raise ModelError(f"{path} has no model_type: give the folder of a transformers model")
    require_supported(own := MODEL_TYPES.get(stated, stated))
    if config.get("quantization_config"):
        raise ModelError(f"{path.parent} has quantized weights: use the unquantized model")
    return stated, own


def require_supported(model_type: str) -> None:
    """Raise a ModelError that says why if `model_type` (from config.json) is not in FAMILIES."""
    if model_type in FAMILIES:
        return
    supported = f"llama, mistral, qwen3, gemma3_text and others are supported ({len(FAMILIES)} in docs/families.md)"
    for reason, model_types in REFUSED.items():
        if model_type in model_types.split():
            raise ModelError(f"model type {quoted(model_type)} is not supported: it {reason}; {supported}")
    raise ModelError(
        f"model type {quoted(model_type)} is not supported: it has not been tested, and attention could be silently "
        f"wrong; {supported}; fastvec/checkpoints/families.py says how to add one"
    )


def document() -> str:
    """Return the text of docs/families.md."""
    lines = [
        "# Model families",
        "",
        "<!-- Written by `python -m fastvec.checkpoints.families > docs/families.md`; a test keeps it up to date. -->",
        "",
        f"{len(FAMILIES)} model types run, bidirectional and causal. A type is listed if the tests have compared a "
        "tiny random model of it,",
        "with every kind of layer its checkpoints have, against transformers' eager attention one sequence at a time.",
        "The type is the `model_type` in a checkpoint's `config.json`; most types cover many checkpoints.",
        "",
        "| model type | for example |",
        "|---|---|",
        *(f"| `{model_type}` | {checkpoint} |" for model_type, checkpoint in FAMILIES.items()),
        "",
        "## Refused",
        "",
        "Any other type is refused, because attention could be silently wrong. These are known not to work:",
        "",
        "| reason: it … | model types |",
        "|---|---|",
        *(f"| {reason} | {types.replace(' ', ', ')} |" for reason, types in REFUSED.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
