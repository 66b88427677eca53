"""Best-of-n without training: sample once, score, and estimate the best of every n.

The estimator: a sample's chance to be the best of n drawn from N without replacement. The KL of
best-of-n from the model: Beirami et al. 2024, whose theorem 3.1 says that the usual formula,
log n - (n - 1) / n, is only an upper bound.
"""

import math
from pathlib import Path

import torch
from lab import Arm, folder, load_lesson


def reward_arm(size, seed):
    """The reward model from so many pairs; 6,000 are lesson 2's default."""
    flags = [f"--num_pairs={size}", "--batch_size=16", "--steps=60", "--num_held_out=1000"]
    return Arm("reward", seed, 2) if size == 6000 else Arm(f"reward{size}", seed, 2, flags)


def sample_reviews(sizes, seed, args):
    """-> gold and log p (16, N), {size: scores (16, N)}, texts, of the sft model's own reviews."""
    lesson, home = load_lesson(3), Path(args.runs_dir, f"seed{seed}")
    count = 128 if args.quick else 512
    config = lesson.Config(model=str(home / "sft"), num_samples=count, batch_size=count)
    file = home / f"best_of_{count}.pt"
    found = torch.load(file) if file.is_file() else {"scores": {}}
    if set(sizes) <= set(found["scores"]):
        return found
    torch.manual_seed(seed)
    lm, tokenizer = lesson.load_causal_lm(config)
    prompts = lesson.load_prompts(config, tokenizer)[0]
    models = {}
    for size in sizes:
        name = folder(reward_arm(size, seed), args)
        models[size] = lesson.load_score(name, config, tokenizer, lm)
    columns = {name: [] for name in ("gold", "logprobs", "texts", *sizes)}
    with torch.no_grad():
        for row in prompts:
            for _ in range(count // 128):
                ids, mask, response = lesson.generate(lm, tokenizer, [row["prompt_ids"]] * 128, 40)
                real = lesson.response_mask(response, lm.generation_config.eos_token_id)
                texts = tokenizer.batch_decode(response, skip_special_tokens=True)
                both = torch.cat([ids, response], 1), torch.cat([mask, real.long()], 1)
                logits = lesson.response_logits(lm, *both, response.shape[1])
                columns["logprobs"].append(
                    (lesson.response_logprobs(logits, response) * real).sum(dim=1).double())
                columns["gold"].append(torch.tensor([lesson.gold_utility(text) for text in texts]))
                columns["texts"] += texts
                for size in sizes:
                    columns[size].append(models[size](*both, texts).double())
    found = {name: torch.cat(x).view(16, -1) for name, x in columns.items() if name != "texts"}
    found = {"gold": found["gold"].double(), "logprobs": found["logprobs"],
             "texts": columns["texts"], "scores": {size: found[size] for size in sizes}}
    torch.save(found, file)
    return found


def best_of_n(sizes, seed, args):
    """{size: rows}. A sample's chance to be the best of n drawn from N without replacement is
    C(rank - 1, n - 1) / C(N, n), with rank 1 the worst: an unbiased estimate of any mean."""
    found, curves = sample_reviews(sizes, seed, args), {}
    for size in sizes:
        scores, order = found["scores"][size].sort(dim=1)  # (16, N)
        gold, p = (found[name].gather(1, order) for name in ("gold", "logprobs"))
        total = scores.shape[1]
        curves[size] = []
        for n in [2 ** i for i in range(int(math.log2(total // 4)) + 1)]:
            weights = torch.tensor([math.comb(i, n - 1) / math.comb(total, n)
                                    for i in range(total)], dtype=torch.float64)
            mean = lambda x: (x * weights).sum(dim=1).mean().item()
            curves[size].append({"n": n, "gold/avg": mean(gold), "reward/avg": mean(scores),
                                 "kl/ref_sum": mean(log_ratio(scores, p.exp(), n)),
                                 "bound": math.log(n) - (n - 1) / n})
    return curves


def gold_at(curve, kl):
    """Best-of-n's gold at a KL, in between two n on a straight line over sqrt(KL)."""
    d = torch.tensor([max(row["kl/ref_sum"], 0) ** 0.5 for row in curve])
    gold = torch.tensor([row["gold/avg"] for row in curve])
    i = min(max(int(torch.searchsorted(d, kl ** 0.5)), 1), len(d) - 1)
    share = min((kl ** 0.5 - d[i - 1].item()) / (d[i] - d[i - 1]).item(), 1)  # beyond the last: it
    return (gold[i - 1] + share * (gold[i] - gold[i - 1])).item()


def log_ratio(scores, p, n):
    """log (p_n / p) of samples sorted by score, (16, N): a text is the best of n with chance
    p_n = F^n - (F - p)^n, where F is the chance of a score at most its own. p is exact, by the
    model; F is counted, in the middle of those that have the same score."""
    below = torch.searchsorted(scores, scores)
    above = torch.searchsorted(scores, scores, right=True)
    middle = (below + above + 1).double() / 2 / (scores.shape[1] + 1)
    high = (middle + p / 2).clamp(max=1)
    # In logarithms, because p may be 1e-20 and F^128 1e-30.
    ratio = n * torch.log1p(-(p / high).clamp(max=1 - 1e-12))  # n log((F - p) / F)
    return n * high.log() + (-torch.expm1(ratio)).log() - p.log()
