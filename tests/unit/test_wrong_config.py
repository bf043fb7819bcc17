"""Wrong configurations: each is refused in its exact one line, before any job.

A case is an overlay on the demo's configuration, as YAML, and the line.
"""

# A table reads best with one case a line.
# ruff: noqa: E501

import json
from pathlib import Path

import pytest
import yaml

from prefdistill.errors import UserError
from prefdistill.pipeline.config_files import check_config_file
from prefdistill.pipeline.validation import validate_config

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
DEMO = (ROOT / "config/demo.yaml").read_text()
LOCAL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 100,
}

# Single values: type, range, choice.
VALUES = {
    "n: 1": ("folds: {n: 1}", "config: folds.n: 1 is not allowed; it must be at least 2"),
    "n: 2.5": ("folds: {n: 2.5}", "config: folds.n: 2.5 is not allowed; it must be of type integer"),
    "n: '3'": ("folds: {n: '3'}", "config: folds.n: '3' is not allowed; it must be of type integer (YAML reads this as text; write 3)"),
    "n: 21": ("folds: {n: 21}", "config: folds.n: 21 is not allowed; it must be at most 20"),
    "n: true": ("folds: {n: true}", "config: folds.n: True is not allowed; it must be of type integer"),
    "test_fraction: 0": ("folds: {test_fraction: 0}", "config: folds.test_fraction: 0 is not allowed; it must be greater than 0"),
    "negative rate": ("student: {training: {learning_rate: -1}}", "config: student.training.learning_rate: -1 is not allowed; it must be greater than 0"),
    "rate that YAML takes for text": ("student: {training: {learning_rate: 1e-4}}", "config: student.training.learning_rate: '1e-4' is not allowed; it must be of type number (YAML reads this as text; write 0.0001)"),
    "rate that is no number": ("student: {training: {learning_rate: .nan}}", "config: student.training.learning_rate: nan is not allowed; it must be a finite number"),
    "infinite list item": ("ensemble: {fold_weights: [1, 1, .inf]}", "config: ensemble.fold_weights.2: inf is not allowed; it must be a finite number"),
    "precision": ("student: {precision: int3}", "config: student.precision: 'int3' is not allowed; it must be one of auto, bf16, fp16, fp32, nf4, fp8"),
    "half a GPU": ("student: {gpus: 0.5}", "config: student.gpus: 0.5 is not allowed; it must be of type integer"),
    "rank": ("student: {lora: {r: 0}}", "config: student.lora.r: 0 is not allowed; it must be at least 1"),
    "dropout": ("student: {lora: {dropout: 1}}", "config: student.lora.dropout: 1 is not allowed; it must be less than 1"),
    "layer to adapt": ("student: {lora: {targets: [lm_head]}}", "config: student.lora.targets.0: 'lm_head' is not allowed; it must be one of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
    "epochs": ("student: {training: {epochs: 0}}", "config: student.training.epochs: 0 is not allowed; it must be greater than 0"),
    "schedule": ("student: {training: {schedule: cosin}}", "config: student.training.schedule: 'cosin' is not allowed; it must be one of cosine, linear, constant"),
    "objective": ("student: {post_pretrain: {objective: mlm}}", "config: student.post_pretrain.objective: 'mlm' is not allowed; it must be one of classification, causal_lm, none"),
    "max_length": ("text: {max_length: 8}", "config: text.max_length: 8 is not allowed; it must be at least 32"),
    "bits": ("quantisation: {bits: [3]}", "config: quantisation.bits.0: 3 is not allowed; it must be one of 8, 4"),
    "no bits": ("quantisation: {bits: []}", "config: quantisation.bits: [] is not allowed; it must be a list of at least 1"),
    "bits twice": ("quantisation: {bits: [4, 4]}", "config: quantisation.bits: [4, 4] is not allowed; it must be a list without repetition"),
    "bits as a number": ("quantisation: {bits: 4}", "config: quantisation.bits: 4 is not allowed; it must be of type array"),
    "group size": ("quantisation: {group_size: 48}", "config: quantisation.group_size: 48 is not allowed; it must be one of 16, 32, 64, 128, 256, 512, 1024"),
    "negative weight": ("distillation: {weights: {kl: -1}}", "config: distillation.weights.kl: -1 is not allowed; it must be at least 0"),
    "temperature": ("distillation: {temperature: 0}", "config: distillation.temperature: 0 is not allowed; it must be greater than 0"),
    "low weight above one": ("distillation: {sample_weights: {low: 2}}", "config: distillation.sample_weights.low: 2 is not allowed; it must be at most 1"),
    "decay of one": ("distillation: {ema: {decay: 1}}", "config: distillation.ema.decay: 1 is not allowed; it must be less than 1"),
    "negative pseudo-labels": ("distillation: {pseudo_labels: {weight: -1}}", "config: distillation.pseudo_labels.weight: -1 is not allowed; it must be at least 0"),
    "gate": ("distillation: {teacher_gate: maybe}", "config: distillation.teacher_gate: 'maybe' is not allowed; it must be one of refuse, warn, off"),
    "calibration": ("calibration: {method: platt}", "config: calibration.method: 'platt' is not allowed; it must be one of vector, temperature, none"),
    "negative fold weight": ("ensemble: {fold_weights: [1, 1, -1]}", "config: ensemble.fold_weights.2: -1 is not allowed; it must be greater than 0"),
    "word for fold weights": ("ensemble: {fold_weights: best}", "config: ensemble.fold_weights: 'best' is not allowed; it must be one of equal, advantage"),
    "cold advantage": ("ensemble: {advantage: {temperature: 0}}", "config: ensemble.advantage.temperature: 0 is not allowed; it must be greater than 0"),
    "unknown baseline": ("ensemble: {advantage: {baseline: mean}}", "config: ensemble.advantage.baseline: 'mean' is not allowed; it must be one of trees, ema, none"),
    "final model": ("predict: {model: gptq2}", "config: predict.model: 'gptq2' is not allowed; it must be one of gptq4, gptq8, merged, adapters"),
    "view": ("predict: {views: [AC]}", "config: predict.views.0: 'AC' is not allowed; it must be one of AB, BA"),
    "negative fold": ("predict: {folds: [-1]}", "config: predict.folds.0: -1 is not allowed; it must be at least 0"),
    "cleaning": ("cleaning: {empty: keeps}", "config: cleaning.empty: 'keeps' is not allowed; it must be one of drop, keep"),
    "bootstrap": ("evaluation: {n_bootstrap: 10}", "config: evaluation.n_bootstrap: 10 is not allowed; it must be at least 100"),
    "long value": (f"folds: [{'x, ' * 99}]", "config: folds: ['x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x',... is not allowed; it must be of type object"),
    "empty scratch": ("scratch: ''", "config: scratch: '' is not allowed; it must be a text that is not empty"),
    "train as text": ("data: {train: train.csv}", "config: data.train: 'train.csv' is not allowed; it must be of type array"),
    "no train": ("data: {train: []}", "config: data.train: [] is not allowed; it must be a list of at least 1"),
    "list of tests": ("data: {test: [a.csv]}", "config: data.test: ['a.csv'] is not allowed; it must be of type string"),
    "size": ("base_models: {tiny_llama: {billions: -1}}", "config: base_models.tiny_llama.billions: -1 is not allowed; it must be greater than 0"),
    "empty repository": ("base_models: {x: {source: hub, repo: ''}}", "config: base_models.x.repo: '' is not allowed; it must be a text that is not empty"),
}  # fmt: skip

# Keys and names: unknown, missing, reserved.
KEYS = {
    "section": ("fold: {n: 3}", "config: unknown key 'fold' at the top level; did you mean 'folds'?"),
    "key": ("student: {precison: nf4}", "config: unknown key 'precison' at student; did you mean 'precision'?"),
    "nested key": ("student: {training: {learnrate: 1}}", "config: unknown key 'learnrate' at student.training; did you mean 'learning_rate'?"),
    "key without a neighbour": ("calibration: {zzz: 1}", "config: unknown key 'zzz' at calibration; known: method, tied, judge"),
    "key of a hub entry": ("data: {extra: [{hub: a/b, splt: x}]}", "config: unknown key 'splt' at data.extra.0; did you mean 'split'?"),
    "key that is gone": ("distillation: {average_orders: true}", "config: distillation.average_orders: gone since version 0.2.0 (averaging both orders' teacher logits moved no loss clear of 0); remove the key"),
    "section that is gone": ("distillation: {soften: {share: 0.5}, zzz: 1, aaa: 1}", "config: distillation.soften: gone since version 0.2.0 (softened verdicts gained 0.0006 nats and made dev scores unclean); remove the key"),
    "number as a key": ("predict: {4: true}", "config: unknown key 4 at predict; known: model, base, folds, views, trees_weight, token_budget"),
    "column of a hub entry": ("data: {extra: [{hub: a/b, columns: {winner: x}}]}", "config: data.extra: columns: 'winner' is no column of the Kaggle schema; it must be one of id, model_a, model_b, prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie"),
    "no student": ("student: null", "config: the top level: the key 'student' is missing"),
    "no base": ("teachers: {llama: {base: null}}", "config: teachers.llama: the key 'base' is missing"),
    "no teachers": ("teachers: {llama: null, qwen: null}", "config: teachers: {} is not allowed; it must be a mapping with at least 1 entry"),
    "no answer": ("check: {pairs: [{prompt: x, response_a: y}]}", "config: check.pairs.0: the key 'response_b' is missing"),
    "teacher named student": ("teachers: {student: {base: tiny_llama}}", "config: teachers: 'student' is not allowed; it must be another name; this one is reserved"),
    "teacher named mean": ("teachers: {mean: {base: tiny_llama}}", "config: teachers: 'mean' is not allowed; it must be another name; this one is reserved"),
    "teacher that climbs": ("teachers: {../student: {base: tiny_llama}}", "config: teachers: '../student' is not allowed; it must be a letter, then letters, digits and _"),
    "teacher that is a number": ("teachers: {1: {base: tiny_llama}}", "config: teachers: 1 is not allowed; it must be of type string"),
    "teacher with a line end": ('teachers: {"a\\n": {base: tiny_llama}}', "config: teachers: 'a\\n' is not allowed; it must be a letter, then letters, digits and _"),
    "base that climbs": ("base_models: {../../x: {source: hub, repo: a/b}}", "config: base_models: '../../x' is not allowed; it must be a letter, then letters, digits and any of _.-"),
    "base with an absolute path": ("base_models: {/etc: {source: hub, repo: a/b}}", "config: base_models: '/etc' is not allowed; it must be a letter, then letters, digits and any of _.-"),
}  # fmt: skip

# Settings that contradict each other.
TOGETHER = {
    "unknown base": ("student: {base: nope}", "config: student.base: 'nope' is not in base_models (tiny_llama, tiny_qwen2, tiny_gemma2)"),
    "hub without repository": ("base_models: {x: {source: hub}}", "config: base_models.x: source 'hub' needs the key 'repo'"),
    "package without a name": ("base_models: {x: {source: package, version: '1'}}", "config: base_models.x: source 'package' needs the key 'package'"),
    "package without a version": ("base_models: {x: {source: package, package: x}}", "config: base_models.x: source 'package' needs the key 'version'"),
    "tiny without architecture": ("base_models: {x: {source: tiny}}", "config: base_models.x: source 'tiny' needs the key 'architecture'"),
    "odd heads": ("base_models: {tiny_gemma2: {n_heads: 3}}", "config: base_models.tiny_gemma2.hidden_size: 64 must be a multiple of twice n_heads (3)"),
    "group that does not divide": ("quantisation: {group_size: 128}", "config: quantisation.group_size: 128 does not divide the student's hidden size 64; choose a divisor such as 64"),
    "heads too narrow to pack": ("base_models: {tiny_gemma2: {hidden_size: 32, n_heads: 2}}", "config: student.base: its key and value width 16 is not a multiple of 32, as GPTQ needs; choose another base"),
    "layer beyond the model": ("student: {lora: {lowest_layer: 2}}", "config: student.lora.lowest_layer: 2 is not allowed; the base has layers 0 to 1"),
    "warm-up longer than training": ("student: {training: {max_steps: 50, warmup_steps: 100}}", "config: student.training.warmup_steps: 100 is not allowed with max_steps 50; it must be less"),
    "fp8 without a GPU": ("student: {precision: fp8, gpus: 0}", "config: student.precision: 'fp8' needs a GPU, but gpus is 0; take another precision or set gpus"),
    "no rows": ("teachers: {llama: {inference: {rows: [5, 5]}}}", "config: teachers.llama.inference.rows: [5, 5] is empty; it must be [start, end) with start < end"),
    "rows backwards": ("teachers: {llama: {inference: {rows: [9, 2]}}}", "config: teachers.llama.inference.rows: [9, 2] is empty; it must be [start, end) with start < end"),
    "rows twice": ("teachers: {llama: {inference: {rows: [0, 9], n_rows: 5}}}", "config: teachers.llama.inference.n_rows: 5 and rows [0, 9] exclude each other; leave one out"),
    "rewards on rows that were seen": ("{ensemble: {fold_weights: advantage}, distillation: {labels: out_of_fold}}", "config: ensemble.advantage.baseline: 'trees' rewards a fold on its dev rows, which teachers that its student learns from were trained on (labels out_of_fold, sample_weights); use 'ema' or 'none'"),
    "no mean to use": ("distillation: {ema: {use: true}}", "config: distillation.ema.use: there is no mean to use; set distillation.ema.decay, such as 0.99"),
    "pseudo-labels of no pairs": ("{data: {test: null}, distillation: {pseudo_labels: {weight: 1}}}", "config: distillation.pseudo_labels.weight: there are no unlabelled pairs; set data.unlabelled, or a weight of 0"),
    "no loss": ("distillation: {weights: {ce: 0, kl: 0, cosine: 0}}", "config: distillation.weights are all 0; give one a weight"),
    "final width not exported": ("quantisation: {bits: [8]}", "config: predict.model: 'gptq4' needs 4 in quantisation.bits, which is [8]"),
    "weights for other folds": ("ensemble: {fold_weights: [1, 1]}", "config: ensemble.fold_weights: [1, 1] must be one weight for each of the 3 folds"),
    "fold beyond the last": ("predict: {folds: [0, 3]}", "config: predict.folds: [0, 3] names a fold beyond 2"),
    "nothing left to train on": ("folds: {select_fraction: 0.4, test_fraction: 0.4}", "config: folds: select_fraction 0.4 and test_fraction 0.4 leave too little to train on; keep their sum <= 0.6"),
    "test parts that do not fit": ("folds: {test_fraction: 0.3, test_part: 0}", "config: folds.test_fraction: 0.3 does not cut the rows into parts for test_part; it must be 1/m, such as 0.333333"),
    "test part beyond the last": ("folds: {test_fraction: 0.2, test_part: 5}", "config: folds.test_part: 5 is not allowed; a test_fraction of 0.2 has parts 0 to 4"),
    "answers in the wrong order": ("text: {template: '{prompt} {response_b} {response_a}:'}", "config: text.template: '{prompt} {response_b} {response_a}:' must hold {prompt}, {response_a} and {response_b} once each, in this order"),
    "answer missing": ("text: {template: '{prompt} {response_a}:'}", "config: text.template: '{prompt} {response_a}:' must hold {prompt}, {response_a} and {response_b} once each, in this order"),
    "open brace": ("text: {template: '{prompt'}", "config: text: unbalanced braces (expected '}' before end of string)"),
    "no cue": ("text: {template: '{prompt} {response_a} {response_b}'}", "config: text.template: '{prompt} {response_a} {response_b}' must end in a short cue after {response_b}, the place where the verdict is read"),
    "turn without number": ("text: {turn: next}", "config: text.turn: 'next' must hold {n} once"),
}  # fmt: skip

# What the disk says: data, models, folders. See the fixture `world`.
DISK = {
    "missing train file": ("data: {train: [nowhere.csv]}", "config: data.train: 'nowhere.csv' does not exist (seen from WORLD)"),
    "missing test file": ("data: {test: nowhere.csv}", "config: data.test: 'nowhere.csv' does not exist (seen from WORLD)"),
    "missing unlabelled file": ("data: {unlabelled: [nowhere.csv]}", "config: data.unlabelled: 'nowhere.csv' does not exist (seen from WORLD)"),
    "folder for a file": ("data: {extra: [folder]}", "config: data.extra: 'folder' is no file; name the files inside, or a hub data set"),
    "spreadsheet": ("data: {extra: [rows.xlsx]}", "config: data.extra: 'rows.xlsx' is not allowed; its name must end in one of .csv, .csv.gz, .csv.zst, .jsonl, .jsonl.gz, .jsonl.zst, .parquet"),
    "file twice": ("data: {train: [ten.csv, ./ten.csv]}", "config: data.train: './ten.csv' is in data.train already; name each file once"),
    "test file that is a train file": ("data: {train: [ten.csv], test: ten.csv}", "config: data.test: 'ten.csv' is in data.train already; name each file once"),
    "unknown simulated file": ("data: {train: [results/simulated/trains.csv]}", "config: data.train: 'results/simulated/trains.csv' is not allowed; of the simulator it must be one of results/simulated/train.csv, results/simulated/extra.csv, results/simulated/ultra.csv, results/simulated/test.csv"),
    "more folds than prompts": ("{data: {train: [ten.csv]}, folds: {n: 9}}", "config: folds.n: 9 folds with select and test need 11 different prompts, data.train has at most 10; lower folds.n or add data"),
    "header only": ("data: {train: [header.csv]}", "config: folds.n: 3 folds with select and test need 5 different prompts, data.train has at most 0; lower folds.n or add data"),
    "scratch that is a file": ("scratch: ten.csv", "config: scratch: 'ten.csv' is a file; it must be a folder"),
    "scratch among the results": ("scratch: results/scratch", "config: scratch: 'results/scratch' lies in results; it must be a folder that may be deleted"),
    "model that is not there": ("base_models: {x: {source: path, path: nowhere}}", "config: base_models.x.path: 'nowhere' is no folder (seen from WORLD)"),
    "model without config.json": ("base_models: {x: {source: path, path: folder}}", "config: base_models.x.path: 'folder' has no config.json; name a folder with a saved model"),
    "model without tokenizer": ("base_models: {x: {source: path, path: untokenized}}", "config: base_models.x.path: 'untokenized' has no tokenizer.json; name a folder with a saved model"),
    "model of damaged config.json": ("base_models: {x: {source: path, path: damaged}}", "config: base_models.x.path: 'damaged': config.json is not a JSON object; save the model again"),
    "model without weights": ("base_models: {x: {source: path, path: weightless}}", "config: base_models.x.path: 'weightless' has no weights: neither model.safetensors nor model.safetensors.index.json; save the model as safetensors"),
    "model with pickled weights": ("base_models: {x: {source: path, path: pickled}}", "config: base_models.x.path: 'pickled' has no weights: neither model.safetensors nor model.safetensors.index.json (pytorch_model.bin is not read); save the model as safetensors"),
    "model without a shard": ("base_models: {x: {source: path, path: shardless}}", "config: base_models.x.path: 'shardless': model.safetensors.index.json names 'a.safetensors', which is no file of the folder; save the model again"),
    "model with a shard elsewhere": ("base_models: {x: {source: path, path: climbing}}", "config: base_models.x.path: 'climbing': model.safetensors.index.json names '../model.safetensors', which is no file of the folder; save the model again"),
    "encoder": ("base_models: {x: {source: path, path: encoder}}", "config: base_models.x.path: 'encoder': architecture BertForMaskedLM is not allowed; it must be a causal language model or a classifier (a name in ForCausalLM or ForSequenceClassification)"),
    "quantised student": ("{base_models: {x: {source: path, path: quantised}}, student: {base: x}}", "config: base_models.x.path: 'quantised' is quantised; the student's adapters are merged into 16- or 32-bit weights: name those"),
    "one model under two names": ("base_models: {x: {source: path, path: model}, y: {source: path, path: ./model}}", "config: base_models.y.path: './model' is the folder of base_models.x too; name one base in both places"),
    "teacher on the student's results": ("base_models: {tiny_llama: null, x: {source: path, path: results/merged}}", "config: base_models.x.path: 'results/merged' lies in results, where this workflow writes; name a model that it does not make"),
    "group that does not divide a local model": ("{base_models: {x: {source: path, path: model}}, student: {base: x}, quantisation: {group_size: 128}}", "config: quantisation.group_size: 128 does not divide the student's hidden size 576; choose a divisor such as 64"),
}  # fmt: skip
CASES = VALUES | KEYS | TOGETHER | DISK

# Configuration files that are not one mapping of unlike keys.
FILES = {
    "key twice": (b"folds: {n: 3}\ntext: {}\nfolds: {n: 4}\n", "config: mine.yaml, line 3: the key 'folds' is there twice, first in line 1; keep one"),
    "nested key twice": (b"folds:\n  n: 3\n  n: 4\n", "config: mine.yaml, line 3: the key 'n' is there twice, first in line 2; keep one"),
    "open bracket": (b"folds: {n: 3\n", "config: mine.yaml, line 2, column 1: not valid YAML (expected ',' or '}', but got '<stream end>'); mend it, and indent with spaces"),
    "tab": (b"folds:\n\tn: 3\n", "config: mine.yaml, line 2, column 1: not valid YAML (found character '\\t' that cannot start any token); mend it, and indent with spaces"),
    "no space after a colon": (b"folds:\n  n:3\n  seed: 0\n", "config: mine.yaml, line 3, column 7: not valid YAML (mapping values are not allowed here); mend it, and indent with spaces"),
    "unknown alias": (b"folds: *folds\n", "config: mine.yaml, line 1, column 8: not valid YAML (found undefined alias 'folds'); mend it, and indent with spaces"),
    "list": (b"- folds\n", "config: mine.yaml: is no mapping; it must hold keys with values"),
    "text": (b"folds\n", "config: mine.yaml: is no mapping; it must hold keys with values"),
    "empty": (b"# nothing yet\n", "config: mine.yaml: is empty; it must hold keys with values"),
    "binary": (b"\x00\x01", 'config: mine.yaml: not valid YAML (unacceptable character #x0000: special characters are not allowed in "<byte string>", position 0); mend it, and indent with spaces'),
    "two documents": (b"a: 1\n---\nb: 2\n", "config: mine.yaml, line 2, column 1: not valid YAML (but found another document); mend it, and indent with spaces"),
}  # fmt: skip


def overlaid(base, overlay):
    """A configuration with an overlay, merged as Snakemake does it."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    merged = {key: overlaid(base.get(key), overlay[key]) for key in overlay}
    return base | merged


def save_model(folder, weights=("model.safetensors",), **changes):
    """The files that a local model's folder is judged by."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LOCAL | changes))
    for name in ("tokenizer.json", "tokenizer_config.json", *weights):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data files and model folders, most of them wrong in one way."""
    root = tmp_path_factory.mktemp("world")
    (root / "folder").mkdir()
    (root / "rows.xlsx").touch()
    (root / "header.csv").write_text("id,prompt\n")
    (root / "ten.csv").write_text("id,prompt\n" + "1,p\n" * 10)
    save_model(root / "model")
    (save_model(root / "untokenized") / "tokenizer.json").unlink()
    (save_model(root / "damaged") / "config.json").write_text("{")
    save_model(root / "weightless", ())
    save_model(root / "pickled", ("pytorch_model.bin",))
    for name, shard in (
        ("shardless", "a.safetensors"),
        ("climbing", "../model.safetensors"),
    ):
        index = save_model(root / name, ()) / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"w": shard}}))
    (root / "model.safetensors").touch()
    save_model(root / "encoder", architectures=["BertForMaskedLM"])
    save_model(root / "quantised", quantization_config={"quant_method": "gptq"})
    save_model(root / "results/merged")
    return root


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_refused_in_its_one_line(name, world, monkeypatch):
    overlay, line = CASES[name]
    monkeypatch.chdir(world)
    config = overlaid(yaml.safe_load(DEMO), yaml.safe_load(overlay))
    with pytest.raises(UserError) as caught:
        validate_config(config, SCHEMA)
    assert str(caught.value).replace(str(world), "WORLD") == line


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused_in_its_one_line(name, tmp_path):
    content, line = FILES[name]
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_config_file(tmp_path / "mine.yaml")
    assert str(caught.value).replace(f"{tmp_path}/", "") == line


def test_a_missing_file_is_refused_in_its_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        check_config_file("mine.yaml")
    assert str(caught.value) == (
        f"config: mine.yaml: No such file or directory (seen from {tmp_path}); name a "
        "configuration file that is there"
    )


@pytest.mark.parametrize("name", ["config", "plan", "small", "demo"])
def test_shipped_files_are_whole(name):
    check_config_file(ROOT / f"config/{name}.yaml")


def test_a_local_model_of_the_right_kind_is_accepted(world, monkeypatch):
    monkeypatch.chdir(world)
    overlay = {"base_models": {"x": {"source": "path", "path": "model"}}}
    config = overlaid(yaml.safe_load(DEMO), overlay | {"student": {"base": "x"}})
    assert validate_config(config, SCHEMA)["student"]["base"] == "x"


def test_the_documentation_counts_them():
    text = (ROOT / "docs/reliability.md").read_text()
    assert f"{len(CASES) + len(FILES) + 1} wrong configurations" in " ".join(
        text.split()
    )
