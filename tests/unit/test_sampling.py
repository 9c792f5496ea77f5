"""Sampling from the right distribution, with noise that belongs to the row."""

from __future__ import annotations

import numpy as np
import torch

from gistmill.specs import GenerationParameters
from workers.engine.sampling import choose, row_noise, sampling_processors

SCORES = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -torch.inf, 1.5])
DRAWS = 20_000
# The 99.9th percentile of chi-square with 6 degrees of freedom: eight tokens, of which one is impossible.
CHI_SQUARE_LIMIT = 22.46


def sample(parameters: GenerationParameters, draws: int = DRAWS) -> torch.Tensor:
    """Return the token that each of many rows with equal scores chooses at step 0."""
    noises = [(f"digest-{draw}", 0) for draw in range(draws)]
    scores = SCORES.repeat(draws, 1)
    start = torch.zeros((draws, 1), dtype=torch.long)
    for processor in sampling_processors(parameters, noises, "cpu"):
        scores = processor(start, scores)
    return scores.argmax(dim=-1)


def sampling(**changes: float) -> GenerationParameters:
    return GenerationParameters.model_validate({"max_new_tokens": 1, "do_sample": True} | changes)


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    seen = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(tokens)
    possible = expected > 0
    assert seen[~possible].sum() == 0, "a token of probability zero was chosen"
    return float(((seen - expected)[possible] ** 2 / expected[possible]).sum())


def test_tokens_are_as_frequent_as_their_probabilities() -> None:
    assert chi_square(sample(sampling()), SCORES.softmax(0)) < CHI_SQUARE_LIMIT


def test_temperature_changes_the_distribution_as_it_says() -> None:
    tokens = sample(sampling(temperature=2.0))

    assert chi_square(tokens, (SCORES / 2).softmax(0)) < CHI_SQUARE_LIMIT
    assert chi_square(tokens, SCORES.softmax(0)) > 10 * CHI_SQUARE_LIMIT


def test_top_k_and_top_p_leave_only_the_best() -> None:
    best_three = torch.where(SCORES >= 1.0, SCORES, -torch.inf).softmax(0)

    assert chi_square(sample(sampling(top_k=3)), best_three) < CHI_SQUARE_LIMIT
    assert chi_square(sample(sampling(top_p=0.75)), best_three) < CHI_SQUARE_LIMIT


def test_noise_repeats_grows_at_its_end_and_differs_by_seed_digest_and_draw() -> None:
    noise = row_noise(1, ("digest", 0), 8)

    assert np.array_equal(noise, row_noise(1, ("digest", 0), 100)[:8])
    others = [row_noise(2, ("digest", 0), 8), row_noise(1, ("other", 0), 8), row_noise(1, ("digest", 1), 8)]
    assert all(not np.isin(other, noise).any() for other in others)
    assert row_noise(2**63 - 1, ("", 10**12), 1)[0] < 1


def test_noise_is_the_same_on_every_machine() -> None:
    assert row_noise(7, ("abc", 2), 2).tolist() == [0.3455738382770669, 0.8817138255846656]


def test_choice_at_the_edges_never_takes_an_impossible_token() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 4)
    # Noise is below 1, but its product with the sum may round to the sum itself.
    noise = torch.tensor([[0.0], [0.5], [1.0 - 2**-53], [1.0]], dtype=torch.float64)

    assert choose(scores, noise).flatten().tolist() == [1, 2, 2, 2]


def test_choice_does_not_depend_on_the_rows_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(64, 1000, generator=generator)
    noise = torch.rand(64, 1, generator=generator, dtype=torch.float64)

    alone = torch.cat([choose(scores[row : row + 1], noise[row : row + 1]) for row in range(64)])

    assert torch.equal(alone, choose(scores, noise))


def test_processor_takes_the_noise_of_the_step_it_is_at() -> None:
    parameters = GenerationParameters(max_new_tokens=4, do_sample=True, seed=3)
    (processor,) = sampling_processors(parameters, [("digest", 0)], "cpu")
    scores = torch.zeros(1, 1000)
    noise = row_noise(3, ("digest", 0), 4)

    chosen = [int(processor(torch.zeros((1, 1 + step), dtype=torch.long), scores).argmax()) for step in range(4)]

    assert chosen == [int(number * 1000) for number in noise]
