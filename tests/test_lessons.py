"""Every lesson as a student runs it: a process of its own, in a folder of its own, small numbers.

The `chain` runs the four lessons once, and many tests look at what it left. A plain command imports
for six seconds before it does anything, so the tests fork theirs from a process that has the
imports done. What a lesson starts itself is a plain command: lessons 2 and 1 of the chain.
"""

import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from conftest import load_lesson
from make_exercises import make_stubs

CPU = ["--device=cpu"]
REPO = Path(__file__).resolve().parent.parent
LESSONS = {1: "lesson1_sft.py", 2: "lesson2_reward.py", 3: "lesson3_ppo.py", 4: "lesson4_grpo.py"}
RUNS = {1: "sft", 2: "reward", 3: "ppo", 4: "grpo"}
SMALL = {
    1: dict(device="cpu", steps=6, base_steps=4, num_examples=300, batch_size=8),
    2: dict(device="cpu", num_pairs=64, num_held_out=32, batch_size=16),
    3: dict(device="cpu", steps=3, num_samples=8, batch_size=4, max_new_tokens=12),
    4: dict(device="cpu", steps=3, num_samples=16, batch_size=8, group_size=4, pass_k=2,
            eval_every=1),
}
INTERFACE = {
    3: "reward/avg loss/policy loss/value loss/total_no_kl loss/total_with_kl kl/approx kl/ref "
       "clip/fraction entropy/avg value/explained_variance response/length response/truncated "
       "gold/avg",
    4: "reward/avg loss/grpo advantage/mean reward/std group/zero_std accuracy/greedy "
       "accuracy/pass@k kl/approx kl/ref clip/fraction entropy/avg response/length",
}
HAS_FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()
PROCESSES = multiprocessing.get_context("forkserver" if HAS_FORKSERVER else "spawn")


# ---- Running a lesson ---------------------------------------------------------------------------


def flags(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def in_child(command, folder, output, stdin, env, stop):
    """The body of a forked process: it becomes `python command...` in that folder. `stop` is
    (signal, n): the process sends itself that signal when its bar has moved for the n-th time."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, so that a test can press Ctrl-C for all of it
    os.chdir(folder)
    os.environ.update(env)
    for number, stream in (1, sys.stdout), (2, sys.stderr):
        stream.flush()
        os.dup2(os.open(f"{output}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    Path(f"{output}.0").write_text(stdin, encoding="utf-8")
    sys.stdin = open(f"{output}.0", encoding="utf-8")
    if stop:
        from tqdm import tqdm
        set_postfix, moves = tqdm.set_postfix, []

        def counting(self, *args, **kwargs):
            set_postfix(self, *args, **kwargs)
            moves.append(self)
            if len(moves) == stop[1]:
                os.kill(os.getpid(), stop[0])

        tqdm.set_postfix = counting
    import runpy
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


@pytest.fixture(scope="session", autouse=True)
def quick_processes(request, tmp_path_factory):
    """No internet, no GPU, one thread; and a process with the imports done, to fork from. The chain
    begins at once, beside the first tests."""
    home = tmp_path_factory.mktemp("home")
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(home), CUDA_VISIBLE_DEVICES="",
                      OMP_NUM_THREADS="1", PYTHONUTF8="1")
    if HAS_FORKSERVER:
        PROCESSES.set_forkserver_preload(
            ["accelerate", "datasets", "peft", "pytest", "torch.utils.tensorboard", "torch._dynamo",
             "transformers.models.gpt2.modeling_gpt2", "transformers.models.auto.modeling_auto",
             "tensorboard.backend.event_processing.event_accumulator", "accelerate.hooks",
             "transformers.generation.utils", "transformers.hf_argparser"])
        multiprocessing.forkserver.ensure_running()
    if not CHAINS and any("chain" in test.fixturenames for test in request.session.items):
        CHAINS.append(BESIDE.submit(make_chain, tmp_path_factory.mktemp("chain")))


def start(folder, command, stdin="", env=(), stop=None, logs=None):
    """A running process; `finish` waits for it. What it prints goes to a file in `logs`."""
    logs = logs or Path(folder).resolve().parent / f"{Path(folder).name}-output"
    logs.mkdir(exist_ok=True)
    output = str(logs / str(len(list(logs.glob("*.2")))))
    Path(output + ".2").touch()
    process = PROCESSES.Process(target=in_child, args=(
        list(map(str, command)), str(folder), output, stdin, dict(env), stop))
    process.start()
    process.output = output
    return process


def finish(process, timeout=600):
    process.join(timeout)
    if process.is_alive():
        process.kill()
        pytest.fail("the process hangs")
    out, err = (Path(f"{process.output}.{n}").read_text(encoding="utf-8") for n in (1, 2))
    return SimpleNamespace(code=process.exitcode, out=out, err=err)


def run(folder, number, *arguments, small=True, **options):
    """Lesson `number` with the small settings and these flags, in this folder."""
    command = [REPO / LESSONS[number], *flags(SMALL[number] if small else {}), *arguments]
    return finish(start(folder, command, **options))


def succeed(folder, number, *arguments, **options):
    done = run(folder, number, *arguments, **options)
    assert done.code == 0, done.err
    return done


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_pair(folder, number, *arguments, small=True, stop=None):
    """The same lesson as two processes of one torch.distributed group, as torchrun starts them.
    `stop` is for the second one."""
    port = free_port()
    command = [REPO / LESSONS[number], *flags(SMALL[number] if small else {}), *arguments]
    pair = []
    for rank in 0, 1:
        env = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                   MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        pair.append(start(folder, command, env=env, stop=stop if rank else None))
    return [finish(process, timeout=120) for process in pair]


def settings(number, **typed):
    return asdict(load_lesson(number).Config(**typed))


def begin(folder, number, **typed):
    """What an interrupted run leaves before its first checkpoint: its settings."""
    run_folder = Path(folder, "runs", RUNS[number])
    run_folder.mkdir(parents=True)
    saved = {"lesson": LESSONS[number], **settings(number, **typed)}
    (run_folder / "config.json").write_text(json.dumps(saved))


# ---- Looking at a run ---------------------------------------------------------------------------


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def assert_same_run(one, other):
    """Bit for bit: the same numbers in every step, the same weights at the end."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert weights(one) == weights(other)


def assert_one_line(done, *words):
    """Exit code 2 and one clear line, before anything else happened."""
    assert done.code == 2, done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.err.startswith("error: ")
    for word in words:
        assert word in done.err, done.err


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def write_jsonl(path, rows):
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name


def without_bar(text):
    """stderr without the bars of tqdm, which begin with the run's name."""
    pieces = re.split(r"[\r\n]+", text)
    bar = r"\w+: +\d+%\|.*\| \d+/\d+ \[.*\]\s*(\x1b\[A)?"
    return [piece for piece in pieces if piece.strip() and not re.fullmatch(bar, piece)]


# ---- The chain: one command makes what it needs -------------------------------------------------


CHAINS = []  # one for all files of tests that import this
BESIDE = ThreadPoolExecutor(1)


@pytest.fixture(scope="session")
def chain(quick_processes):
    return CHAINS[0].result()


def make_chain(folder):
    """Lesson 3 as the first command in a folder, and lesson 4 as soon as it can begin. The runs
    that it finds begun (lessons 1 and 2) have small settings, or this would take minutes."""
    begin(folder, 1, **SMALL[1])
    begin(folder, 2, **SMALL[2])

    def command(number):
        return start(folder, [REPO / LESSONS[number], *flags(SMALL[number])])

    first = command(3)
    while first.is_alive() and not (folder / "runs" / "sft" / "model").is_dir():
        time.sleep(0.1)
    grpo, ppo = finish(command(4)), finish(first)
    for done in ppo, grpo:
        assert done.code == 0, done.err
    return SimpleNamespace(folder=folder, runs=folder / "runs", ppo_out=ppo.out, ppo_err=ppo.err,
                           grpo_out=grpo.out, grpo_err=grpo.err)


def test_a_missing_input_is_named_and_made_by_its_lesson(chain):
    lines = [line for line in chain.ppo_out.splitlines() if "is missing" in line]
    assert [re.findall(r"lesson\d_\w+\.py", line) for line in lines] == [
        ["lesson2_reward.py"], ["lesson1_sft.py"]]
    assert "in about" in lines[0] and "runs/reward" in lines[0].replace(os.sep, "/")
    assert not [line for line in chain.grpo_out.splitlines() if "is missing" in line]


def test_the_screen_shows_bars_and_no_warnings(chain):
    for err in chain.ppo_err, chain.grpo_err:
        assert without_bar(err) == []
    for name in "base", "sft", "reward", "ppo":
        assert f"{name}: 100%" in chain.ppo_err
    assert "grpo: 100%" in chain.grpo_err
    assert "reward=" in chain.ppo_err and "reward=" in chain.grpo_err


@pytest.mark.parametrize("number", LESSONS)
def test_a_run_ends_with_a_table_a_sparkline_and_the_next_command(chain, number):
    """What comes next is said at the end of a chain alone: within it, it comes."""
    out = chain.grpo_out if number == 4 else chain.ppo_out
    parts = re.split(r"(?<=\n)(?=Written to runs)", out)  # of ppo_out: base's run ends silently
    mine = "".join(parts[number - 1:number + 1]) if number < 4 else "".join(parts[:2])
    assert re.search(r"before +after\n", mine)
    assert re.search(r"[\w/]+: -?[\d.]+ [▁▂▃▄▅▆▇█]+ -?[\d.]+\n", mine)
    assert f"Written to {Path('runs', RUNS[number])}" in mine
    assert re.search(r"\nNext: .*python lesson\d_", out) and out.count("Next: ") == 1
    assert "\nCurves: tensorboard --logdir runs and then http://" in out


# ---- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", *RUNS.values()])
def test_a_finished_run_holds_these_files_and_no_leftovers(chain, name):
    names = {path.name for path in (chain.runs / name).iterdir()}
    kept = {"model", "config.json", "metrics.jsonl"}
    if name != "base":
        kept |= {"samples.md", "eval.json"}
    assert kept <= names
    extra = {name for name in names - kept if not name.startswith("events.out.tfevents.")}
    assert not {name for name in extra if not re.match(r"checkpoint-\d+$", name)}


@pytest.mark.parametrize("name", ["base", "sft", "ppo", "grpo"])
def test_a_model_loads_with_from_pretrained_and_nothing_else(chain, name):
    folder = chain.runs / name / "model"
    model, tokenizer = (kind.from_pretrained(folder)
                        for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.dtype == torch.float32
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    ends = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    text = "我爱苹果。 27 + 15 = 42"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_reward_model_loads_with_one_label_and_its_normalisation(chain):
    folder = chain.runs / "reward" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert isinstance(model.config.score_mean, float) and model.config.score_std > 0


@pytest.mark.parametrize("number", LESSONS)
def test_config_json_holds_every_setting_of_the_run(chain, number):
    # Lessons 1 and 2 were resumed here: the test of data files looks at ones that they wrote.
    expected = settings(number, **SMALL[number])
    saved = json.loads((chain.runs / RUNS[number] / "config.json").read_text())
    assert saved.pop("lesson") == LESSONS[number]
    assert saved.keys() == expected.keys()
    filled_in = {"model", "reward"}
    assert {name: value for name, value in saved.items() if name not in filled_in} == {
        name: value for name, value in expected.items() if name not in filled_in}
    if number > 2:
        assert Path(saved["model"]) == Path("runs/sft")
        assert saved["reward"] == ("sum" if number == 4 else str(Path("runs/reward")))


@pytest.mark.parametrize("name, steps", [("base", 4), ("sft", 6), ("reward", 4), ("ppo", 3),
                                         ("grpo", 3)])
def test_metrics_have_a_line_a_step(chain, name, steps):
    rows = metrics(chain.runs / name)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert all(isinstance(value, (int, float)) for value in row.values())
        assert all(value == value for value in row.values()), "NaN is no JSON"


@pytest.mark.parametrize("number", INTERFACE)
def test_metrics_carry_the_names_of_the_interface(chain, number):
    rows = metrics(chain.runs / RUNS[number])
    missing = set(INTERFACE[number].split()) - set(rows[0])
    assert not missing
    if number == 3:
        for row in rows:  # the KL is in the reward, so both totals are the same
            assert row["loss/total_no_kl"] == row["loss/total_with_kl"]
            total = row["loss/policy"] + 0.5 * row["loss/value"]
            assert row["loss/total_no_kl"] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("name", ["base", *RUNS.values()])
def test_tensorboard_shows_what_metrics_jsonl_says(chain, name):
    events = EventAccumulator(str(chain.runs / name), size_guidance={"scalars": 0})
    events.Reload()
    rows = metrics(chain.runs / name)
    for tag in {key for row in rows for key in row} - {"step"}:
        drawn = [(event.step, event.value) for event in events.Scalars(tag)]
        logged = [(row["step"], pytest.approx(row[tag], rel=1e-6)) for row in rows if tag in row]
        assert drawn == logged, tag


@pytest.mark.parametrize("number", LESSONS)
def test_tensorboard_has_the_samples(chain, number):
    folder = chain.runs / RUNS[number]
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert shown == (folder / "samples.md").read_text(encoding="utf-8")
    assert "**\n\n- " in shown  # without a blank line Markdown would see no list
    if number > 2:  # on the way, too: the first step's
        [step] = events.Tensors("samples/step/text_summary")
        lines = step.tensor_proto.string_val[0].decode().splitlines()
        assert step.step == 1 and len(lines) > 1
        asked = "- What is" if number == 4 else "- Write a short review"
        assert all(line.startswith(asked) and line.endswith("**") for line in lines)


@pytest.mark.parametrize("name", RUNS.values())
def test_samples_show_both_models_answers_to_the_same_prompts(chain, name):
    text = (chain.runs / name / "samples.md").read_text(encoding="utf-8")
    labels = {"sft": ("base", "tuned"), "reward": ("chosen", "rejected")}.get(
        name, ("before", "after"))
    assert text.count("**") >= 6
    for label in labels:
        assert text.count(f"- {label}") == text.count("**") / 2


# ---- Seeds and resuming -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", LESSONS)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(chain, number):
    # Lesson 1 with another seed makes another base model: not where other tests need this one.
    folder = "seeds" if number == 1 else "runs"
    options = [f"--run_name=again{number}", f"--runs_dir={folder}"]
    succeed(chain.folder, number, *options)
    assert_same_run(chain.folder / folder / f"again{number}", chain.runs / RUNS[number])
    succeed(chain.folder, number, *options, "--seed=1", "--overwrite")
    assert metrics(chain.folder / folder / f"again{number}") != metrics(chain.runs / RUNS[number])


def command_to_go_on(done):
    """The words after "To go on: python" in the message of an interrupted run."""
    return shlex.split(done.err.split("To go on: python ")[1].splitlines()[0])


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(chain, number):
    name = f"stopped{number}"
    stopped = run(chain.folder, number, f"--run_name={name}", "--overwrite",
                  stop=(signal.SIGINT, 2))
    assert stopped.code not in (0, None) and "Traceback" not in stopped.err
    assert len(metrics(chain.runs / name)) == 2  # the step was finished, and no other begun
    assert not (chain.runs / name / "model").exists()

    refused = run(chain.folder, number, f"--run_name={name}", "--resume", "--micro_batch_size=99",
                  "--seed=7")
    assert_one_line(refused, "seed", "7")  # and not the micro-batches: they change no result

    resumed = finish(start(chain.folder, command_to_go_on(stopped)))
    assert resumed.code == 0, resumed.err
    assert_same_run(chain.runs / name, chain.runs / RUNS[number])


LETTERS = """
def f(prompts, responses, **columns):
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]
"""


@pytest.mark.slow
def test_an_interrupted_grpo_run_with_a_reward_of_ones_own_goes_on(chain):
    (chain.folder / "my_rewards.py").write_text(LETTERS)
    own = ["--reward=my_rewards.py:f", "--max_new_tokens=6", "--overwrite"]
    succeed(chain.folder, 4, *own, "--run_name=letters")
    stopped = run(chain.folder, 4, *own, "--run_name=stopped4", stop=(signal.SIGINT, 2))
    assert stopped.code not in (0, None)
    resumed = finish(start(chain.folder, command_to_go_on(stopped)))
    assert resumed.code == 0, resumed.err
    assert_same_run(chain.runs / "stopped4", chain.runs / "letters")
    assert weights(chain.runs / "letters") != weights(chain.runs / "sft")


@pytest.mark.slow
def test_lesson_1_goes_on_from_within_the_base_model_and_from_within_the_tuning(chain, tmp_path):
    (tmp_path / "a b").mkdir()
    stopped = run(tmp_path, 1, "--runs_dir=a b/runs", stop=(signal.SIGINT, 2))  # of 4 base steps
    assert stopped.code not in (0, None)
    assert len(metrics(tmp_path / "a b/runs/base")) == 2
    stopped = finish(start(tmp_path, command_to_go_on(stopped), stop=(signal.SIGINT, 5)))
    assert stopped.code not in (0, None)
    assert len(metrics(tmp_path / "a b/runs/sft")) == 3  # after the other 2 base steps
    resumed = finish(start(tmp_path, command_to_go_on(stopped)))
    assert resumed.code == 0, resumed.err
    for name in "base", "sft":
        assert_same_run(tmp_path / "a b/runs" / name, chain.runs / name)


def check_crash(chain, number):
    """Killed in step 3 of a run that saves every second step, or every step but the last save
    was cut short: the resumed run has each step once."""
    folder = chain.runs / f"killed{number}"
    options = [f"--run_name=killed{number}", "--overwrite", "--save_every=2"]
    killed = run(chain.folder, number, *options, stop=(signal.SIGKILL, 3))
    assert killed.code == -signal.SIGKILL
    assert (folder / "checkpoint-2").is_dir() and len(metrics(folder)) == 2
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "reward/avg": 99}\n{"step": 4, "rew')
    shutil.copytree(folder / "checkpoint-2", folder / "unfinished")
    (folder / "unfinished" / "optimizer.bin").write_bytes(b"half a file")
    again = run(chain.folder, number, f"--run_name=killed{number}", "--resume",
                stop=(signal.SIGKILL, 1))  # in the first step after the checkpoint
    assert again.code == -signal.SIGKILL and len(metrics(folder)) == 2
    succeed(chain.folder, number, f"--run_name=killed{number}", "--resume")
    assert_same_run(folder, chain.runs / RUNS[number])
    events = EventAccumulator(str(folder))
    events.Reload()
    rows = metrics(folder)
    assert [event.step for event in events.Scalars("grad_norm")] == [row["step"] for row in rows]


def test_after_a_crash_the_run_goes_on_from_the_last_whole_checkpoint(chain):
    check_crash(chain, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3, 4])
def test_after_a_crash_every_lesson_goes_on(chain, number):
    check_crash(chain, number)


@pytest.mark.slow
def test_the_adapted_kl_coefficient_survives_a_resume(chain):
    options = ["--target_kl=0.01", "--overwrite"]
    succeed(chain.folder, 3, *options, "--run_name=adapted")
    coefs = [row["kl/coef"] for row in metrics(chain.runs / "adapted")]
    assert coefs[0] == 0.1 and len(set(coefs)) == 3
    stopped = run(chain.folder, 3, *options, "--run_name=stopped3", stop=(signal.SIGINT, 2))
    finish(start(chain.folder, command_to_go_on(stopped)))
    assert_same_run(chain.runs / "stopped3", chain.runs / "adapted")


@pytest.mark.slow
def test_ctrl_c_during_a_chained_lesson_stops_both_and_saves(tmp_path):
    begin(tmp_path, 1, **{**SMALL[1], "steps": 100000, "base_steps": 1, "eval_every": 100000})
    parent = start(tmp_path, [REPO / LESSONS[2], *flags(SMALL[2])])
    log = tmp_path / "runs" / "sft" / "metrics.jsonl"
    while parent.is_alive() and not (log.is_file() and len(log.read_text().splitlines()) > 2):
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)
    done = finish(parent, timeout=60)
    assert done.code not in (0, None)
    assert "Traceback" not in done.err
    assert f"To go on: python {REPO / LESSONS[2]} --device=cpu" in done.err  # what was typed
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)  # nobody is left
    steps = [int(path.name[11:]) for path in (tmp_path / "runs" / "sft").glob("checkpoint-*")]
    assert max(steps) == len(metrics(tmp_path / "runs" / "sft"))
    assert not (tmp_path / "runs" / "reward").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", LESSONS)
def test_a_finished_run_is_not_resumed(chain, number):
    before = listing(chain.runs)
    assert_one_line(run(chain.folder, number, "--resume", small=False), "finished")
    assert listing(chain.runs) == before


def test_a_run_that_was_never_begun_is_not_resumed(tmp_path):
    assert_one_line(run(tmp_path, 1, "--resume", "--run_name=never"), "never")
    assert not (tmp_path / "runs").exists()


# ---- Earlier runs and output folders ------------------------------------------------------------


def test_an_earlier_run_is_kept_unless_it_is_overwritten(chain):
    def again(*options):
        succeed(chain.folder, 2, "--run_name=twice", "--steps=1", *options)

    def kept():
        return {path.name: json.loads((path / "config.json").read_text())["seed"]
                for path in chain.runs.glob("twice*")}

    again("--seed=1")
    again("--seed=2")
    again("--seed=3")
    assert kept() == {"twice": 3, "twice-1": 1, "twice-2": 2}
    assert (chain.runs / "twice-1" / "model").is_dir()
    again("--seed=4", "--overwrite")
    assert kept() == {"twice": 4, "twice-1": 1, "twice-2": 2}


@pytest.mark.slow
@pytest.mark.parametrize("number, option", [(1, []), (2, []), (3, []), (4, []),
                                            (1, ["--overwrite"])])
def test_a_folder_with_files_of_others_is_refused(chain, number, option):
    folder = chain.runs / "thesis"
    folder.mkdir(exist_ok=True)
    (folder / "chapter1.txt").write_text("Call me Ishmael.")
    before = listing(chain.runs)
    assert_one_line(run(chain.folder, number, "--run_name=thesis", *option), "thesis")
    assert listing(chain.runs) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", LESSONS)
def test_a_folder_that_cannot_be_written_is_refused(chain, tmp_path, number):
    (tmp_path / "file").write_text("not a folder")
    model = [f"--model={chain.runs / 'sft'}"] if number > 1 else []
    reward = ["--reward=sentiment"] if number > 2 else []
    done = run(tmp_path, number, "--runs_dir=file", *model, *reward)
    assert_one_line(done, "file")
    assert (tmp_path / "file").read_text() == "not a folder"


# ---- Bad input ----------------------------------------------------------------------------------

ROW = {"instruction": "Say hello.", "output": "Hello.", "chosen": "Hello.", "rejected": "No."}
BAD_INPUT = [
    (1, ["--stepz=3"], ["stepz"]),
    (1, ["--step=3"], ["--step"]),  # no guessing from the beginning of a flag
    (1, ["--steps=many"], ["steps", "many"]),
    (3, ["--kl_coef=high"], ["kl_coef", "high"]),
    (3, ["--kl_in=nowhere"], ["kl_in", "nowhere"]),
    (4, ["--average=median"], ["average", "median"]),
    (1, ["--device=cuda"], ["cuda"]),
    (1, ["--batch_size=0"], ["batch_size"]),
    (3, ["--num_samples=6"], ["batch_size", "num_samples"]),
    (4, ["--num_samples=18"], ["num_samples 18", "group_size 4"]),
    (1, ["--model=no-such-model"], ["no-such-model"]),
    (1, ["--model=runs/nothing"], ["no run runs/nothing", "run the lesson"]),
    (1, ["--model=empty"], ["empty"]),
    (1, ["--data=no-such.jsonl"], ["no-such.jsonl"]),
    (1, ["--data=not_json.jsonl"], ["not_json.jsonl", "line 1"]),
    (1, ["--data=no_output.jsonl"], ["no_output.jsonl", "line 1", "'output'"]),
    (2, ["--data=no_rejected.jsonl"], ["line 1", "'rejected'"]),
    (3, ["--data=no_instruction.jsonl"], ["line 1", "'instruction'", "['output']", "question"]),
    (1, ["--data=nothing.jsonl"], ["nothing.jsonl"]),
    (1, ["--data=no_rows.json"], ["no_rows.json"]),
    (1, ["--data=one_row.jsonl"], ["one_row.jsonl"]),
    (3, ["--max_prompt_length=3"], ["max_prompt_length"]),
    (1, ["--prompt_format=chat", "--model=runs/sft"], ["--prompt_format chat", "template"]),
    (1, ["--config=no-such.json"], ["no-such.json"]),
    (1, ["--config=broken.json"], ["broken.json"]),
    (3, ["--config=unknown.json"], ["temprature"]),
    (3, ["--config=wrong_type.json"], ["steps", "many"]),
    (3, ["--reward=no/such"], ["no/such"]),
    (4, ["--reward=no_such.py:f"], ["no_such.py"]),
    (4, ["--reward=rewards.py:g"], ["rewards.py", "g"]),
    (4, ["--reward=rewards.py:too_few", "--batch_size=8"], ["too_few", "returned"]),
    (3, ["--reward=other"], ["other", "tokenizer"]),
    (1, ["--prompt=Hi", "--model=empty"], ["empty"]),
]
MORE_BAD_INPUT = [  # slow tests: a process each, and mostly code that another lesson shares
    (2, ["--stepz=3"], ["stepz"]),
    (3, ["--stepz=3"], ["stepz"]),
    (4, ["--stepz=3"], ["stepz"]),
    (2, ["--log_level=loud"], ["log_level", "loud"]),
    (4, ["--group_size=0"], ["group_size"]),
    (4, ["--batch_size=6"], ["batch_size", "num_samples"]),
    (2, ["--model=no-such-model"], ["no-such-model"]),
    (3, ["--model=no-such-model", "--reward=sentiment"], ["no-such-model"]),
    (4, ["--model=no-such-model"], ["no-such-model"]),
    (2, ["--model=empty"], ["empty"]),
    (3, ["--model=empty", "--reward=sentiment"], ["empty"]),
    (2, ["--data=no-such.jsonl"], ["no-such.jsonl"]),
    (3, ["--data=no-such.jsonl"], ["no-such.jsonl"]),
    (4, ["--data=no-such.jsonl", "--reward=format"], ["no-such.jsonl"]),
    (3, ["--data=not_json.jsonl"], ["not_json.jsonl"]),
    (4, ["--data=no_instruction.jsonl", "--reward=format"], ["line 1", "'instruction'"]),
    (3, ["--data=no_rows.json"], ["no_rows.json"]),
    (2, ["--data=one_row.jsonl"], ["one_row.jsonl"]),
    (1, ["--config=list.json"], ["list.json"]),
    (4, ["--reward=no/such"], ["no/such"]),
    (4, ["--reward=other", "--max_new_tokens=6"], ["other", "tokenizer"]),
    (1, ["--max_prompt_length=3", "--model=runs/base"], ["max_prompt_length"]),
    (1, ["--run_name=base"], ["run_name", "base"]),
    (1, ["--model=runs/sft", "--run_name=sft"], ["--model", "sft"]),
    (3, ["--model=runs/ppo", "--run_name=ppo"], ["--model", "ppo"]),
    (4, ["--model=runs/grpo/", "--run_name=grpo", "--overwrite"], ["--model", "grpo"]),
    (3, ["--target_kl=3", "--kl_coef=0"], ["target_kl", "kl_coef"]),
    (3, ["--target_kl=3", "--kl_in=old"], ["target_kl", "kl_in"]),
    (3, ["--temperature=0"], ["temperature"]),
    (4, ["--temperature=0"], ["temperature"]),
    (4, ["--group_size=1"], ["group_size"]),
    (3, ["--reward=runs/sft"], ["runs/sft", "no reward model"]),
    (1, ["--prompt=Hi", "--run_name=never"], ["never", "lesson1_sft.py first"]),
    (2, ["--score=Hi", "--run_name=never"], ["never", "lesson2_reward.py first"]),
    (2, ["--prompt=Hi"], ["--score"]),
    (4, ["--reward=rewards.py:nan", "--batch_size=8"], ["rewards.py:nan", "nan", "finite"]),
    (4, ["--reward=rewards.py:none", "--batch_size=8"], ["rewards.py:none", "None"]),
]


@pytest.fixture(scope="session")
def bad_files(chain, tmp_path_factory):
    """The files that the flags above speak of, and a link to the chain's runs."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(chain.runs, folder / "runs", ignore=shutil.ignore_patterns("events*"))
    (folder / "empty").mkdir()
    (folder / "not_json.jsonl").write_text("# Chapter 1\nCall me Ishmael.\n")
    (folder / "nothing.jsonl").write_text("")
    (folder / "no_rows.json").write_text("[]")
    write_jsonl(folder / "one_row.jsonl", [ROW])
    write_jsonl(folder / "no_output.jsonl", [{"instruction": "Hi."}] * 3)
    write_jsonl(folder / "no_rejected.jsonl", [{"instruction": "Hi.", "chosen": "Ho."}] * 3)
    write_jsonl(folder / "no_instruction.jsonl", [{"output": "Ho."}, {"output": "Hi."}])
    (folder / "broken.json").write_text('{"steps": 3')
    (folder / "list.json").write_text("[3]")
    (folder / "unknown.json").write_text('{"temprature": 1.0}')
    (folder / "wrong_type.json").write_text('{"steps": "many"}')
    (folder / "rewards.py").write_text("""
def too_few(prompts, responses, **_):
    return [1.0]
def nan(prompts, responses, **_):
    return [float("nan")] * len(responses)
def none(prompts, responses, **_):
    pass
""")
    tiny_gpt2(folder / "other-lm", ["quite", "another", "tokenizer"])
    model = AutoModelForSequenceClassification.from_pretrained(folder / "other-lm", num_labels=1)
    model.config.score_mean, model.config.score_std = 0.0, 1.0
    model.save_pretrained(folder / "other" / "model")
    AutoTokenizer.from_pretrained(folder / "other-lm").save_pretrained(folder / "other" / "model")
    return folder


@pytest.mark.parametrize("number, arguments, words", [
    pytest.param(*row, marks=[pytest.mark.slow] if row in MORE_BAD_INPUT else [],
                 id=f"lesson{row[0]} {' '.join(row[1])}") for row in BAD_INPUT + MORE_BAD_INPUT])
def test_bad_input_is_one_line_and_nothing_is_written(bad_files, number, arguments, words):
    before = listing(bad_files / "runs")
    assert_one_line(run(bad_files, number, "--run_name=bad", *arguments), *words)
    assert listing(bad_files / "runs") == before


@pytest.mark.parametrize("number, arguments", [
    (2, ["--data=no-such.jsonl"]), (3, ["--data=no-such.jsonl"]), (3, ["--reward=no/such"]),
    (4, ["--data=no-such.jsonl", "--reward=format"]), (4, ["--reward=no_such.py:f"]),
])
def test_bad_input_is_found_before_other_lessons_run(tmp_path, number, arguments):
    begin(tmp_path, 1, **{**SMALL[1], "steps": 1, "base_steps": 1})
    begin(tmp_path, 2, **{**SMALL[2], "steps": 1})
    assert_one_line(run(tmp_path, number, *arguments))
    assert not (tmp_path / "runs" / "sft" / "model").exists()


FAULTS = """
import os, signal, torch
def wrong(prompts, responses, **_):
    return [len(missing) for _ in responses]
def memory(prompts, responses, **_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\\n2.00 GiB")
def disk(prompts, responses, **_):
    raise OSError(28, "No space left on device")
def interrupt(prompts, responses, **_):
    os.kill(os.getpid(), signal.SIGINT)
    return [0.0] * len(responses)
"""


@pytest.mark.parametrize("name, words", [
    ("wrong", ["NameError", "missing", "faults.py, line 4"]),
    ("memory", ["out of memory", "--micro_batch_size", "--lora_rank"]),
    ("disk", ["No space left on device", "faults.py, line 8"])])
def test_what_escapes_is_one_line(chain, name, words):
    (chain.folder / "faults.py").write_text(FAULTS)
    assert_one_line(run(chain.folder, 4, f"--reward=faults.py:{name}", "--run_name=faulty"), *words)


def test_the_traceback_is_there_for_those_who_want_it(chain):
    (chain.folder / "faults.py").write_text(FAULTS)
    done = run(chain.folder, 4, "--reward=faults.py:wrong", "--log_level=info")
    assert done.code == 2 and "Traceback" in done.err and "in main" in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def test_ctrl_c_before_the_first_step_is_one_line(chain):
    (chain.folder / "faults.py").write_text(FAULTS)
    done = run(chain.folder, 4, "--reward=faults.py:interrupt", "--run_name=faulty")
    assert done.code not in (0, None) and len(done.err.strip().splitlines()) == 1
    assert "Interrupted" in done.err


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_an_engine_that_would_be_ignored_is_refused(chain, engine):
    before = listing(chain.runs)
    done = run(chain.folder, 3, "--run_name=sharded", env={f"ACCELERATE_USE_{engine}": "true"})
    assert_one_line(done, "FSDP", "DeepSpeed")
    assert listing(chain.runs) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", LESSONS)
def test_what_a_run_does_not_use_it_does_not_import(chain, number):
    """The tiny world is made of lists: the datasets library is for data of one's own. Here each
    lesson is a plain command, and none of its imports warns."""
    code = ("import runpy, sys\nsys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "assert 'transformers' in sys.modules and 'datasets' not in sys.modules")
    command = [sys.executable, "-c", code, str(REPO / LESSONS[number]), *flags(SMALL[number])]
    done = subprocess.run([*command, f"--run_name=lean_{number}"], cwd=chain.folder, text=True,
                          capture_output=True)
    assert done.returncode == 0 and without_bar(done.stderr) == [], done.stderr


def test_trackers(chain):
    before = listing(chain.runs)
    for name, words in ("no_such_tracker", ["no_such_tracker"]), (
            "wandb", ["log_with=wandb", "no supported trackers", "installed"]):
        assert_one_line(run(chain.folder, 2, f"--report_to={name}"), *words)
    assert listing(chain.runs) == before
    succeed(chain.folder, 2, "--report_to=none", "--run_name=untracked", "--steps=1", "--overwrite")
    names = {path.name for path in (chain.runs / "untracked").iterdir()}
    assert names == {"model", "config.json", "metrics.jsonl", "eval.json", "samples.md"}


@pytest.mark.parametrize("number, alias, name, value", [
    (1, "--lr", "learning_rate", 0.25), (1, "--model_name_or_path", "model", "gpt2"),
    (2, "--center-rewards-coefficient", "center_coef", 0.5), (3, "--cliprange", "clip_range", 0.3),
    (3, "--vf_coef", "value_coef", 0.3), (3, "--num_ppo_epochs", "ppo_epochs", 2),
    (3, "--response-length", "max_new_tokens", 9), (4, "--num_generations", "group_size", 4),
    (4, "--beta", "kl_coef", 0.3), (4, "--epsilon", "clip_low", 0.1),
    (4, "--epsilon_high", "clip_high", 0.3), (4, "--num-iterations", "ppo_epochs", 2)])
def test_other_libraries_names(number, alias, name, value):
    assert getattr(load_lesson(number).read_config([f"{alias}={value}"]), name) == value


# ---- Settings from a file -----------------------------------------------------------------------


def test_flags_win_over_the_config_file_and_dashes_are_underscores(chain):
    (chain.folder / "settings.json").write_text(json.dumps(
        {"kl_coef": 0.3, "steps": 7, "num-samples": 8, "max_new_tokens": 5, "seed": 3,
         "learning_rate": None}))
    arguments = ["--config=settings.json", "--device=cpu", "--steps", "1", "--batch-size", "4",
                 "--run-name=filled", "--reward=sentiment"]
    succeed(chain.folder, 3, *arguments, small=False)
    saved = json.loads((chain.runs / "filled" / "config.json").read_text())
    expected = dict(kl_coef=0.3, steps=1, num_samples=8, max_new_tokens=5, seed=3, batch_size=4,
                    learning_rate=1e-4, reward="sentiment")
    assert {name: saved[name] for name in expected} == expected
    assert len(metrics(chain.runs / "filled")) == 1


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("alias", ["--kl_beta", "--kl-beta", "--kl_coef", "--kl-coef"])
def test_kl_beta_is_kl_coef(alias, number):
    lesson = load_lesson(number)
    assert lesson.read_config([alias, "0.25"]).kl_coef == 0.25
    assert lesson.read_config([f"{alias}=0.25"]).kl_coef == 0.25


@pytest.mark.parametrize("number", LESSONS)
def test_every_setting_has_a_help_line(tmp_path, number):
    done = run(tmp_path, number, "--help", small=False)
    assert done.code == 0 and done.err == ""
    for name in settings(number):
        assert re.search(rf"--{name}\b", done.out), name
    assert "--batch-size" in done.out


# ---- Talking to a trained model -----------------------------------------------------------------


@pytest.mark.parametrize("run, flag", [
    ("sft", []), ("ppo", ["--model=runs/ppo"]), ("base", ["--model=runs/base/model"])])
def test_prompt_prints_the_likeliest_answer(chain, run, flag):
    before = listing(chain.runs)
    done = succeed(chain.folder, 1, "--prompt=Write a review.", *CPU, *flag, small=False)
    tokenizer = AutoTokenizer.from_pretrained(chain.runs / run / "model")
    model = AutoModelForCausalLM.from_pretrained(chain.runs / run / "model")
    ids = tokenizer("### Instruction:\nWrite a review.\n\n### Response:\n", return_tensors="pt")
    length = 512 // 3 if flag else 48  # with --model: a third of its positions, at most 256
    both = model.generate(ids["input_ids"], do_sample=False, max_new_tokens=length)[0]
    answer = tokenizer.decode(both[ids["input_ids"].shape[1]:], skip_special_tokens=True)
    assert done.out == answer + "\n" and done.err == ""
    assert answer or run != "base"  # the base model rambles
    assert listing(chain.runs) == before


def test_chat_answers_until_an_empty_line_or_the_end_of_the_input(chain):
    one, two, ended = (
        succeed(chain.folder, 1, "--chat", *CPU, small=False, stdin=stdin)
        for stdin in ("Hi.\n", "Hi.\n你好\n\nnever read\n", "Hi.\n你好\n"))
    assert one.err == two.err == ended.err == ""
    assert two.out == ended.out and len(two.out) > len(one.out)


def test_score_prints_a_number(chain):
    good, same, bad = (
        succeed(chain.folder, 2, f"--score={text}", *CPU, small=False).out
        for text in ("A lovely film.", "A lovely film.", "这部电影很糟糕。"))
    numbers = [float(re.search(r"[+-]\d+\.\d+", out)[0]) for out in (good, same, bad)]
    assert numbers[0] == numbers[1] != numbers[2]


# ---- The student's functions --------------------------------------------------------------------


def course(folder, number, body):
    """A copy of the lesson beside exercises/ with all stubs but one, which gets this body."""
    file, name, code = body
    (folder / "exercises").mkdir()
    shutil.copy(REPO / "exercises" / "load.py", folder / "exercises")
    shutil.copy(REPO / LESSONS[number], folder)
    for answers in (REPO / "answers").glob("ex*.py"):
        text = make_stubs(answers.read_text("utf-8"), answers.stem)
        text = text.replace(f'raise NotImplementedError("{file}.{name}")', code)
        (folder / "exercises" / answers.name).write_text(text, encoding="utf-8")
    return folder / LESSONS[number]


@pytest.mark.parametrize("number, file, name, code, metric, value", [
    (1, "ex1_sft", "sft_loss", "return 0 * logits.sum() + 4", "loss/train", 4),
    (2, "ex2_reward", "pairwise_loss", "return 0 * chosen.sum() + 3", "loss/pairwise", 3),
    (3, "ex3_ppo", "ppo_value_loss", "return 0 * values.sum() + 0.5", "loss/value", 0.5),
    pytest.param(4, "ex3_ppo", "response_logprobs", "return 0 * logits[:, :-1].sum(dim=-1) - 2",
                 "entropy/avg", 2, marks=pytest.mark.slow),
    (4, "ex4_grpo", "sum_reward", "return 0.25", "reward/avg", 0.25)],
    ids=["lesson1", "lesson2", "lesson3", "lesson4, a function of lesson 3", "lesson4"])
def test_exercise_trains_with_the_students_functions(
        chain, tmp_path, number, file, name, code, metric, value):
    """And runs/base, which was made without --exercise, is taken as it is."""
    before = weights(chain.runs / "base")
    lesson = course(tmp_path, number, (file, name, code))
    small = flags({**SMALL[number], "eval_every": 9} if number == 4 else SMALL[number])
    run_name = f"--run_name=mine_{number}_{name}"
    done = finish(start(chain.folder, [lesson, *small, "--exercise", run_name]))
    assert done.code == 0, done.err
    assert f"Your functions: {name}.\n" in done.out
    rows = metrics(chain.runs / f"mine_{number}_{name}")
    assert [row[metric] for row in rows] == pytest.approx([value] * len(rows))
    assert weights(chain.runs / "base") == before
    assert not (chain.runs / "base-1").exists()


def test_exercise_with_a_file_that_does_not_load_is_one_line(tmp_path):
    lesson = course(tmp_path, 3, ("ex3_ppo", "kl_penalty", "return ("))
    done = finish(start(tmp_path, [lesson, "--exercise", "--device=cpu"]))
    assert_one_line(done, "ex3_ppo.py", "SyntaxError")
    assert not (tmp_path / "runs").exists()


# ---- Models and data of one's own ---------------------------------------------------------------

PLAIN = [{"instruction": f"Say the number {n}.", "input": "" if n % 2 else f"In Chinese: {n}",
          "output": f"It is {n}." if n % 2 else "苹果" * (n % 5 + 1), "extra": n}
         for n in range(24)]
PAIRS = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": "No, 不要。"}
         for row in PLAIN]


def byte_level_tokenizer(texts, **special):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


def tiny_gpt2(folder, texts):
    """Like the hub's: no pad token, dropout, weights in float16."""
    from transformers import GPT2Config, GPT2LMHeadModel
    tokenizer = byte_level_tokenizer(texts, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0)).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_qwen3(folder, texts):
    """Like the hub's: pad == end of text, a list of end tokens, filters on the sampling, bf16."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    tokenizer = byte_level_tokenizer(texts, eos_token="<|im_end|>", pad_token="<|im_end|>")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        eos_token_id=1, tie_word_embeddings=True)).bfloat16()
    model.generation_config = GenerationConfig(
        eos_token_id=[1, 0], pad_token_id=1, do_sample=True, top_k=2, top_p=0.5, temperature=0.3,
        repetition_penalty=1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


COLUMNS = """
import json
def f(prompts, responses, extra, **columns):
    assert len(prompts) == len(responses) == len(extra)
    assert all(prompt == f"Say the number {n}." for prompt, n in zip(prompts, extra))
    assert set(columns) == {"instruction", "input", "output", "completions"}, columns.keys()
    return [len(response) / 10 + n for response, n in zip(responses, extra)]
"""


def check_own_model(folder, make_model, name):
    texts = [f"{row['instruction']} {row['input']} {row['output']}" for row in PLAIN]
    make_model(folder / name, texts + ["### Instruction:\n\n### Input:\n### Response:\n"] * 5)
    write_jsonl(folder / "plain.jsonl", PLAIN)
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    (folder / "my_rewards.py").write_text(COLUMNS)
    runs = folder / "runs" / name
    long = "--max_prompt_length=120"
    small = {1: ["--steps=3"], 2: ["--num_held_out=4"], 3: ["--steps=1"],
             4: ["--steps=1", "--max_new_tokens=8"]}

    done = succeed(folder, 1, f"--model={name}", "--data=plain.jsonl", long, *small[1])
    assert without_bar(done.err) == []
    saved = json.loads((runs / "sft" / "config.json").read_text())
    assert saved.pop("lesson") == LESSONS[1]
    model = AutoModelForCausalLM.from_pretrained(runs / "sft" / "model")
    positions = model.config.max_position_embeddings
    assert saved == settings(1, **{**SMALL[1], "model": name, "data": "plain.jsonl", "steps": 3,
                                   "max_prompt_length": 120, "max_new_tokens": positions // 3})
    tokenizer = AutoTokenizer.from_pretrained(runs / "sft" / "model")
    ends = model.generation_config.eos_token_id
    assert tokenizer.pad_token_id not in (None, *(ends if isinstance(ends, list) else [ends]))
    assert model.dtype == torch.float32

    sft = f"--model=runs/{name}/sft"
    done = succeed(folder, 2, sft, "--data=pairs.jsonl", long, *small[2])
    assert without_bar(done.err) == []
    done = succeed(folder, 3, sft, "--data=plain.jsonl", long, *small[3])
    assert without_bar(done.err) == []
    saved = json.loads((runs / "ppo" / "config.json").read_text())
    assert Path(saved["reward"]) == Path("runs", name, "reward")
    assert "gold/avg" not in metrics(runs / "ppo")[0]  # only the tiny world knows what is good
    done = succeed(folder, 4, sft, "--data=plain.jsonl", "--reward=my_rewards.py:f", long,
                   *small[4])
    assert without_bar(done.err) == []
    assert sorted(path.name for path in runs.glob("[!.]*")) == ["grpo", "ppo", "reward", "sft"]
    assert {path.name for path in (folder / "runs").iterdir()} == {name}
    return runs


def test_gpt2_from_a_folder_with_data_of_ones_own(tmp_path):
    runs = check_own_model(tmp_path, tiny_gpt2, "my-gpt2")
    assert (runs / "grpo" / "samples.md").is_file()


@pytest.mark.slow
def test_qwen3_from_a_folder_with_data_of_ones_own(tmp_path):
    runs = check_own_model(tmp_path, tiny_qwen3, "my-qwen3")
    model = AutoModelForCausalLM.from_pretrained(runs / "grpo" / "model")
    assert sorted(model.generation_config.eos_token_id) == [0, 1]
    # The original's own settings, not those of our sampling.
    assert (model.generation_config.top_p, model.generation_config.repetition_penalty) == (0.5, 1.5)


@pytest.mark.slow
def test_other_data_needs_no_other_model(chain):
    """--data alone: the tiny model learns what stands in the file."""
    write_jsonl(chain.folder / "plain.jsonl", PLAIN)
    succeed(chain.folder, 3, "--data=plain.jsonl", "--run_name=mine", "--steps=1", "--overwrite")
    assert "Say the number" in (chain.runs / "mine" / "samples.md").read_text(encoding="utf-8")


def test_the_input_column_is_optional_and_long_prompts_are_left_out(chain):
    rows = [{"instruction": f"Say {n}." + " Please." * 60 * (n % 3 == 0), "output": f"<{n}>"}
            for n in range(60)]
    write_jsonl(chain.folder / "two_columns.jsonl", rows)
    done = succeed(chain.folder, 1, "--data=two_columns.jsonl", "--run_name=mine1", "--steps=1",
                   "--base_steps=1", "--runs_dir=other")
    assert "left out" in done.out
    samples = (chain.folder / "other" / "mine1" / "samples.md").read_text(encoding="utf-8")
    titles = re.findall(r"\*\*(.*?)\*\*", samples)
    assert titles and not [title for title in titles if "Please" in title]
    assert "None" not in samples


@pytest.mark.slow
def test_a_begun_reward_model_of_another_language_model_is_finished_first(tmp_path):
    texts = [row["instruction"] + "### Instruction:\n### Response:\n" for row in PLAIN]
    tiny_gpt2(tmp_path / "my-gpt2", texts)
    folder = tmp_path / "runs" / "my-gpt2" / "reward"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(
        settings(2, **SMALL[2], model="my-gpt2", max_prompt_length=120)))
    succeed(tmp_path, 3, "--model=my-gpt2", "--max_prompt_length=120")
    assert (folder / "model").is_dir()


# ---- Variants -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number, arguments", [
    (2, ["--freeze_backbone"]), (2, ["--margin=1", "--center_coef=0"]), (2, ["--rm_epochs=2"]),
    (2, ["--bf16"]),
    (3, ["--reward=sentiment"]), (3, ["--kl_in=loss"]), (3, ["--kl_in=old"]),
    (3, ["--kl_coef=0", "--entropy_coef=0.01"]), (3, ["--max_kl=1e-6"]), (3, ["--bf16"]),
    (4, ["--reward=sentiment"]), (4, ["--reward=runs/reward"]), (4, ["--kl_coef=0"]),
    (4, ["--average=token"]), (4, ["--average=constant", "--scale=none"]),
    (4, ["--drop_uninformative=False"]), (4, ["--micro_batch_size=3"]), (4, ["--bf16"]),
])
def test_every_variant_runs(chain, number, arguments):
    letters = []
    if number == 4 and not any("reward" in argument for argument in arguments):
        (chain.folder / "my_rewards.py").write_text(LETTERS)
        letters = ["--reward=my_rewards.py:f"]
    name = f"variant{number}"
    done = succeed(chain.folder, number, *arguments, *letters, f"--run_name={name}", "--overwrite",
                   *(["--max_new_tokens=8"] if number == 4 else []))
    assert without_bar(done.err) == []
    rows = metrics(chain.runs / name)
    assert all(value == value for row in rows for value in row.values())
    before = "sft" if number > 2 else "reward"
    assert weights(chain.runs / name) != weights(chain.runs / before)
    if arguments == ["--freeze_backbone"]:
        old, new = (AutoModelForSequenceClassification.from_pretrained(
            chain.runs / run / "model").state_dict() for run in ("reward", name))
        base = AutoModelForCausalLM.from_pretrained(chain.runs / "sft" / "model").state_dict()
        same = [name for name in new if name in base]
        assert len(same) > 10 and all(torch.equal(new[name], base[name]) for name in same)
    if number == 3 and "--kl_in=loss" in arguments:
        for row in rows:
            assert row["loss/total_with_kl"] == pytest.approx(
                row["loss/total_no_kl"] + 0.1 * row["kl/ref"], abs=1e-6)
    if number == 3 and "--kl_in=old" in arguments:
        for row in rows:
            assert row["loss/total_with_kl"] == pytest.approx(
                row["loss/total_no_kl"] + 0.1 * row["kl/approx"], abs=1e-6)


@pytest.mark.slow
def test_a_launchers_accumulation_changes_nothing(chain):
    """`accelerate launch` says it in the environment; the lessons have their own, micro-batches."""
    succeed(chain.folder, 1, "--runs_dir=accumulated",
            env={"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})
    assert metrics(chain.folder / "accumulated" / "sft") == metrics(chain.runs / "sft")


# ---- Adapters -----------------------------------------------------------------------------------


def test_without_peft_an_adapter_is_refused_in_one_line(chain):
    (chain.folder / "hidden.py").write_text(
        "import sys, runpy\n"
        "sys.modules['peft'] = None  # the import fails, as if it were not installed\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n")
    before = listing(chain.runs)
    done = finish(start(chain.folder, [chain.folder / "hidden.py", REPO / LESSONS[3],
                                       *flags(SMALL[3]), "--lora_rank=2"]))
    assert_one_line(done, "--lora_rank", "pip install peft")
    assert listing(chain.runs) == before


def run_with_adapters(folder, runs, *settings):
    """The four lessons with adapters, each from the one before."""
    for number in LESSONS:
        succeed(folder, number, *adapter_flags(number, runs, *settings))
    return folder / runs


def adapter_flags(number, runs, *settings):
    return ["--lora_rank=2", f"--runs_dir={runs}", *settings,
            *([f"--reward={runs}/reward"] if number == 3 else []),
            *([f"--model={runs}/sft"] if number > 1 else [])]


@pytest.fixture(scope="session")
def adapted(chain):
    return run_with_adapters(chain.folder, "adapted")


@pytest.fixture(scope="session")
def in_4_bits(chain):
    return run_with_adapters(chain.folder, "in_4_bits", "--load_in_4bit")


EITHER = pytest.mark.parametrize("either", [
    pytest.param("adapted", marks=pytest.mark.peft),
    pytest.param("in_4_bits", marks=pytest.mark.qlora)])


@EITHER
@pytest.mark.parametrize("name", RUNS.values())
def test_an_adapter_is_saved_beside_the_merged_model(request, chain, either, name):
    """Merged into the weights as they were, also where training saw them in 4 bits."""
    from peft import PeftModel
    from peft import AutoPeftModelForCausalLM as CausalLM, AutoPeftModelForSequenceClassification

    adapted = request.getfixturevalue(either)
    kind = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    merged = kind.from_pretrained(adapted / name / "model").eval()
    options = {"num_labels": 1} if name == "reward" else {}
    both = (AutoPeftModelForSequenceClassification if name == "reward" else CausalLM)
    os.chdir(chain.folder)  # the adapter's base is the folder that --model named
    both = both.from_pretrained(adapted / name / "adapter", **options).eval()
    assert isinstance(both, PeftModel)
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, both(ids).logits, rtol=1e-4, atol=1e-5)
    rows = metrics(adapted / name)
    assert rows and all(value == value for row in rows for value in row.values())


@EITHER
@pytest.mark.parametrize("number", LESSONS)
def test_an_interrupted_run_with_an_adapter_goes_on(request, chain, either, number):
    """Its checkpoint holds what is trained, and not the model."""
    adapted = request.getfixturevalue(either)
    settings = ["--load_in_4bit"] if either == "in_4_bits" else []
    stopped = run(chain.folder, number, *adapter_flags(number, either, *settings),
                  f"--run_name=stopped{number}", "--overwrite", stop=(signal.SIGINT, 2))
    assert stopped.code not in (0, None) and "Traceback" not in stopped.err
    checkpoint, = (adapted / f"stopped{number}").glob("checkpoint-*")
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        assert {"lora_" in name or name.split(".")[0] == "value_head" or ".score." in name
                for name in file.keys()} == {True}
    resumed = finish(start(chain.folder, command_to_go_on(stopped)))
    assert resumed.code == 0, resumed.err
    assert_same_run(adapted / f"stopped{number}", adapted / RUNS[number])


@pytest.mark.peft
def test_a_folder_with_an_adapter_is_a_model(adapted):
    """It is merged, and then all weights are trained."""
    folder = adapted.parent
    done = succeed(folder, 1, "--model=adapted/sft/adapter", "--run_name=from_adapter")
    assert without_bar(done.err) == []
    old = load_file(adapted / "sft" / "model" / "model.safetensors")
    new = load_file(folder / "runs" / "adapter" / "from_adapter" / "model" / "model.safetensors")
    assert old.keys() == new.keys()
    assert not [key for key in old if torch.equal(old[key], new[key])]


@pytest.mark.peft
def test_the_screen_shows_no_warnings_with_an_adapter(adapted):
    done = succeed(adapted.parent, 4, "--lora_rank=1", "--model=adapted/sft", "--run_name=quiet",
                   "--runs_dir=adapted", "--reward=adapted/reward", "--max_new_tokens=8")
    assert without_bar(done.err) == []


# ---- Two processes ------------------------------------------------------------------------------


def assert_two_equal_one(two, one, names):
    for row, other in zip(metrics(two), metrics(one), strict=True):
        for name in names:
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), (row["step"], name)
    kind = (AutoModelForSequenceClassification if names[0] == "loss/pairwise"
            else AutoModelForCausalLM)
    states = [kind.from_pretrained(run / "model").state_dict() for run in (two, one)]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-4)


def test_two_processes_end_lesson_2_like_one(chain):
    # The gradient's norm is compared as well: Adam would hide a gradient that is half as long.
    for done in run_pair(chain.folder, 2, "--run_name=two", "--overwrite"):
        assert done.code == 0, done.err
    assert_two_equal_one(chain.runs / "two", chain.runs / "reward",
                         ["loss/pairwise", "loss/center", "accuracy/train", "grad_norm"])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [
    ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
     "--mixed_precision=no", "--dynamo_backend=no"],
    ["-m", "torch.distributed.run", "--nproc_per_node=2"]], ids=["accelerate launch", "torchrun"])
def test_launchers_start_two_processes(chain, launcher):
    """Also without --device cpu on a machine without a GPU, where accelerate alone would start two
    processes that do not know each other."""
    port = ["--main_process_port" if "accelerate" in launcher[1] else "--master_port", free_port()]
    options = [flag for flag in flags(SMALL[2]) if flag != "--device=cpu"]
    done = subprocess.run(
        [sys.executable, *launcher, *port, REPO / LESSONS[2], *options, "--run_name=launched",
         "--overwrite"], cwd=chain.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in chain.runs.glob("launched*")] == ["launched"]
    assert done.stdout.count("Written to") == 1
    assert_two_equal_one(chain.runs / "launched", chain.runs / "reward",
                         ["loss/pairwise", "loss/center", "accuracy/train", "grad_norm"])


def test_processes_that_do_not_find_each_other_are_refused(chain, tmp_path):
    """As under a launcher with several processes on a machine whose only device is MPS."""
    (tmp_path / "alone.py").write_text(
        "import sys, runpy, torch; from accelerate import Accelerator; Accelerator();"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    done = finish(start(chain.folder, [tmp_path / "alone.py", REPO / LESSONS[2], *flags(SMALL[2])],
                        env={"WORLD_SIZE": "2"}))
    assert_one_line(done, "do not find each other")


@pytest.mark.slow
def test_two_processes_end_lesson_1_like_one(chain, tmp_path):
    first, second = run_pair(tmp_path, 1)
    assert first.code == second.code == 0, first.err + second.err
    assert without_bar(first.err) == [] and second.err == ""
    assert "before" in first.out and "before" not in second.out  # one of them speaks
    for name in "base", "sft":
        assert_two_equal_one(tmp_path / "runs" / name, chain.runs / name,
                             ["loss/train", "grad_norm"])


def test_two_processes_do_not_chain_but_name_the_command(tmp_path):
    for number, needed in (2, 1), (3, 2), (4, 1):
        for done in run_pair(tmp_path, number):
            assert_one_line(done, LESSONS[needed], "python")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 4])
def test_two_processes_train_and_write_one_set_of_files(chain, number):
    (chain.folder / "my_rewards.py").write_text(LETTERS)
    reward = ["--reward=my_rewards.py:f", "--max_new_tokens=6"] if number == 4 else []
    name = f"two{number}"
    for done in run_pair(chain.folder, number, f"--run_name={name}", *reward):
        assert done.code == 0 and without_bar(done.err) == [], done.err
    assert [path.name for path in chain.runs.glob(f"{name}*")] == [name]
    assert len(metrics(chain.runs / name)) == 3
    assert weights(chain.runs / name) != weights(chain.runs / "sft")


@pytest.mark.slow
def test_ctrl_c_on_one_of_two_processes_stops_both_after_the_same_step(chain):
    done = run_pair(chain.folder, 3, "--run_name=pair_stopped", stop=(signal.SIGINT, 2))
    assert all(process.code not in (0, None) for process in done)
    assert "Traceback" not in done[0].err + done[1].err
    assert ["To go on" in process.err for process in done] == [True, False]  # one of them speaks
    assert len(metrics(chain.runs / "pair_stopped")) == 2
    for again in run_pair(chain.folder, 3, "--run_name=pair_stopped", "--resume"):
        assert again.code == 0, again.err
    for whole in run_pair(chain.folder, 3, "--run_name=pair_whole"):
        assert whole.code == 0, whole.err
    assert_same_run(chain.runs / "pair_stopped", chain.runs / "pair_whole")


@pytest.mark.slow
def test_a_process_whose_groups_are_all_dropped_does_not_stop_the_others(chain):
    write_jsonl(chain.folder / "two.jsonl", [{"instruction": "flat"}, {"instruction": "steep"}])
    (chain.folder / "steep.py").write_text(
        "def f(prompts, responses, **_):\n"
        "    return [len(r) * (p == 'steep') / 10 for p, r in zip(prompts, responses)]\n")
    first, second = run_pair(
        chain.folder, 4, "--data=two.jsonl", "--eval_data=two.jsonl", "--reward=steep.py:f",
        "--num_samples=8",
        "--steps=6", "--max_new_tokens=6", "--run_name=dropped")
    assert first.code == second.code == 0, first.err + second.err
    shares = [row["group/zero_std"] for row in metrics(chain.runs / "dropped")]
    assert 0.5 in shares, "no step had one group dropped of two"


# A program in a process of its own, without pytest's conftest: it loads the lessons for itself.
DRIVER = '''
"""Whole lessons, from main() on. What would differ between one process and two for a good reason is
taken out: responses depend on their number in the whole batch alone (and are longer on one process
than on the other), the optimiser is plain SGD, whose step is the gradient, and no gradient is
clipped: a clipped one would hide a wrong length."""
import json
import random
import sys
from importlib import util
from pathlib import Path

import torch
from accelerate import Accelerator


def load(path):
    spec = util.spec_from_file_location("lesson", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fixed_responses():
    calls = []

    def generate(lm, tokenizer, prompts, max_new_tokens, temperature=1.0, width=None, size=256):
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt",
                              padding="max_length" if width else True, max_length=width)
        calls.append(len(prompts))
        # Calls with a width are shared out among the processes, the others all of them make alike.
        first = len(prompts) * accelerator.process_index if width else 0
        pad, end, rows = tokenizer.pad_token_id, tokenizer.eos_token_id, []
        for number in range(first, first + len(prompts)):
            dice = random.Random(f"{len(calls)} {number}")
            length = dice.randrange(max_new_tokens + 1)  # max_new_tokens: cut before its end token
            row = [dice.randrange(5, 300) for _ in range(length)] + [end]
            rows.append((row + [pad] * max_new_tokens)[:max_new_tokens])
        longest = max(len([token for token in row if token != pad]) for row in rows)
        return batch["input_ids"], batch["attention_mask"], torch.tensor(rows)[:, :longest]

    return generate


cases, suffix, *flags = sys.argv[1:]
accelerator = Accelerator(cpu=True)
clip = Accelerator.clip_grad_norm_
Accelerator.clip_grad_norm_ = lambda self, weights, _: clip(self, weights, 1e9)
torch.optim.AdamW = lambda groups, lr=0.0, **_: torch.optim.SGD(groups, lr=lr)
torch.optim.Adam = torch.optim.AdamW
for name, lesson, arguments in json.loads(Path(cases).read_text()):
    module = load(lesson)
    module.generate = fixed_responses()
    arguments = [argument.replace("SUFFIX", suffix) for argument in arguments]
    sys.argv = [lesson, *arguments, f"--run_name={name}-{suffix}", *flags]
    module.main()
assert accelerator.num_processes == int(suffix == "two") + 1
if accelerator.num_processes > 1:
    torch.distributed.destroy_process_group()
'''
PPO = ("--steps=2 --num_samples=8 --batch_size=4 --max_new_tokens=6 --reward=runs/reward "
       "--value_learning_rate=.01 --entropy_coef=.1 --learning_rate=.01")
GRPO = ("--steps=3 --num_samples=18 --batch_size=6 --max_new_tokens=6 --reward=vowels.py:f "
        "--group_size=3 --pass_k=2 --eval_every=9 --kl_coef=.1 --learning_rate=.05")
CASES = {
    "sft": (1, "--steps=3 --num_examples=300 --batch_size=5 --warmup_steps=0 --learning_rate=.1"),
    "reward": (2, "--num_pairs=45 --num_held_out=16 --batch_size=13 --warmup_steps=0 "
                  "--learning_rate=.1"),
    "ppo-reward": (3, PPO), "ppo-loss": (3, f"{PPO} --kl_in=loss"),
    "ppo-old": (3, f"{PPO} --kl_in=old"),
    "grpo-sequence": (4, GRPO), "grpo-token": (4, f"{GRPO} --average=token"),
    "grpo-constant": (4, f"{GRPO} --average=constant --scale=none")}
WITH_ADAPTERS = {f"{name}-lora": (number, f"{flags} --lora_rank=2")
                 for name, (number, flags) in CASES.items()
                 if name in ("sft", "reward", "ppo-reward", "grpo-token")}
WITH_ADAPTERS["ppo-two-adapters"] = (  # the reward model is the second one
    3, f"{PPO} --lora_rank=2 --reward=runs/lm/reward-lora-SUFFIX")


def run_everywhere(chain, cases, folder):
    """Runs each case whole, in pieces of 3 rows, and as two processes in pieces of 2, from a copy
    of the fine-tuned model. Batches of 5 and 13 rows leave one process without a row for the last
    piece, and so do 5 rows of GRPO, a third of the 15 whose groups were not dropped."""
    if not (chain.folder / "lm").is_dir():
        shutil.copytree(chain.runs / "sft" / "model", chain.folder / "lm")
    (chain.folder / "vowels.py").write_text(
        "def f(prompts, responses, **_):\n"
        "    return [float(any(x in 'ae' for x in text)) for text in responses]\n")
    (folder / "driver.py").write_text(DRIVER)
    (folder / "cases.json").write_text(json.dumps([
        (name, str(REPO / LESSONS[number]), ["--model=lm", "--device=cpu", *flags.split()])
        for name, (number, flags) in cases.items()]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                "--master_port", free_port()]
    command = [str(folder / "driver.py"), str(folder / "cases.json")]
    two = subprocess.Popen([*torchrun, *command, "two", "--micro_batch_size=2"], text=True,
                           cwd=chain.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for suffix, micro in ("whole", 64), ("pieces", 3):
        done = finish(start(chain.folder, [*command, suffix, f"--micro_batch_size={micro}"]))
        assert done.code == 0, done.err
    output = two.communicate(timeout=300)[0]
    assert two.returncode == 0, output


@pytest.fixture(scope="session")
def parts(chain, tmp_path_factory):
    run_everywhere(chain, CASES, tmp_path_factory.mktemp("parts"))
    return chain.runs / "lm"


@pytest.fixture(scope="session")
def parts_with_adapters(chain, tmp_path_factory):
    run_everywhere(chain, WITH_ADAPTERS, tmp_path_factory.mktemp("parts"))
    return chain.runs / "lm"


def assert_parts_make_the_whole(runs, name, how):
    whole, other = metrics(runs / f"{name}-whole"), metrics(runs / f"{name}-{how}")
    assert min(row["grad_norm"] for row in whole) > 0.01  # there is something to compare
    for row, same in zip(whole, other, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=2e-6)
    states = [load_file(runs / f"{name}-{part}" / "model" / "model.safetensors")
              for part in ("whole", how)]
    for key in states[0]:
        torch.testing.assert_close(*(state[key] for state in states), rtol=1e-4, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pieces", "two"])
@pytest.mark.parametrize("name", CASES)
def test_pieces_and_processes_make_the_whole(parts, name, how):
    """The same global batch, the same weights at the end, the same numbers on the way."""
    assert_parts_make_the_whole(parts, name, how)


@pytest.mark.peft
@pytest.mark.parametrize("how", ["pieces", "two"])
@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_pieces_and_processes_make_the_whole_with_adapters(parts_with_adapters, name, how):
    assert_parts_make_the_whole(parts_with_adapters, name, how)


@pytest.mark.slow
def test_the_cases_leave_a_process_without_a_row(parts):
    """In some step one group of six was dropped, so that minibatches have 5 rows: 4 and 1."""
    shares = [row["group/zero_std"] for row in metrics(parts / "grpo-token-whole")]
    assert 1 / 6 in [pytest.approx(share) for share in shares] or 5 / 6 in [
        pytest.approx(share) for share in shares], shares


# ---- The whole thing ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_command_of_a_new_student(tmp_path):
    """python lesson3_ppo.py in an empty folder, with nothing typed: minutes."""
    done = subprocess.run([sys.executable, REPO / LESSONS[3]], cwd=tmp_path, text=True,
                          capture_output=True, encoding="utf-8", timeout=1200)
    assert done.returncode == 0, done.stderr
    assert without_bar(done.stderr) == []
    assert {path.name for path in (tmp_path / "runs").glob("[!.]*")} == {
        "base", "sft", "reward", "ppo"}
    rows = metrics(tmp_path / "runs" / "ppo")
    assert len(rows) == 50
    assert rows[-1]["reward/avg"] > rows[0]["reward/avg"] + 1
    assert rows[-1]["gold/avg"] > rows[0]["gold/avg"] + 0.5
