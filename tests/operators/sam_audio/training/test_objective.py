"""The loss: what it measures, what it asks of a model, and that its random numbers belong to the example."""

from dataclasses import replace

import pytest
import torch
from released_layout import SAM_AUDIO

from operators.sam_audio.config import ConfigError, SAMAudioConfig
from operators.sam_audio.model import SAMAudio
from operators.sam_audio.training.alignment import AlignmentHead, CepstralEmbedding, build_embedding
from operators.sam_audio.training.objective import LatentBatch, Objective, ObjectiveConfig, default_objective, draw
from operators.sam_audio.training.train import initialise, tiny_config


def small_model(prediction: str = "velocity") -> SAMAudio:
    torch.manual_seed(0)
    config = SAMAudioConfig.from_dict(SAM_AUDIO | {"span_predictor": None, "prediction": prediction})
    model = SAMAudio(replace(config, vision_encoder=None, transformer=replace(config.transformer, dropout=0.0)))
    model.embed_anchors.gate.data.fill_(1)
    return model


def batch_for(model: SAMAudio, size: int = 2, frames: int = 20) -> LatentBatch:
    generator = torch.Generator().manual_seed(1)
    c, text = model.config.audio_codec.channels, model.config.text_encoder.dim
    mixture, target, residual = torch.randn(3, size, c, frames, generator=generator)
    return LatentBatch(
        mixture,
        target,
        residual,
        torch.randn(size, 3, text, generator=generator),
        torch.ones(size, 3, dtype=torch.bool),
        torch.tensor([[0, 3, 1]]).expand(size, -1),
        torch.randint(0, 3, (size, frames), generator=generator),
        torch.arange(size),
    )


def test_noise_and_time_belong_to_the_example_and_not_to_its_place_in_a_batch():
    config = ObjectiveConfig(t0_share=0.5)
    noise, time = draw(config, 3, [4, 5, 6], 10, 8, "cpu")
    again, time_again = draw(config, 3, [6, 4], 10, 8, "cpu")
    assert torch.equal(noise[[2, 0]], again) and torch.equal(time[[2, 0]], time_again)
    assert not torch.equal(noise, draw(config, 4, [4, 5, 6], 10, 8, "cpu")[0])


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_times_follow_the_configuration(sampling):
    config = ObjectiveConfig(time_sampling=sampling, t0_share=0.3, max_time=0.9)
    _, time = draw(config, 0, range(2000), 1, 1, "cpu")
    assert 0.26 < float((time == 0).float().mean()) < 0.34
    later = time[time > 0]
    assert later.max() <= 0.9 and abs(float(later.mean()) - 0.45) < 0.02
    # The logistic normal avoids both ends.
    assert (float(((later < 0.1) | (later > 0.8)).float().mean()) < 0.15) == (sampling == "logit_normal")


@pytest.mark.parametrize("prediction", ["velocity", "x"])
def test_a_network_that_is_right_has_no_loss(prediction, monkeypatch):
    model = small_model(prediction)
    batch = batch_for(model)
    noise, time = draw(ObjectiveConfig(max_time=0.9), 0, [0, 1], 20, 16, "cpu")
    clean = torch.cat([batch.target, batch.residual], 1).transpose(1, 2)
    objective = Objective(model, ObjectiveConfig())
    wrong = objective(batch, noise, time)
    monkeypatch.setattr(model, "evaluate", lambda z, t, conditions, features=None: clean - noise)
    right = objective(batch, noise, time)
    assert float(wrong["loss"].detach()) > 0.5
    assert float(right["loss"]) < 1e-8 and float(right["error"].max()) < 1e-8


def test_every_trained_weight_gets_a_gradient():
    """What DistributedDataParallel asks for: a weight without one would make its workers wait for each other."""
    model = small_model()
    head = AlignmentHead(model.config.transformer.dim, 5)
    objective = Objective(model, ObjectiveConfig(alignment_weight=1.0), head)
    model.audio_codec.requires_grad_(False)
    batch = replace(batch_for(model), event=torch.randn(2, 5))
    objective(batch, *draw(objective.config, 0, [0, 1], 20, 16, "cpu"))["loss"].backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


def test_checkpointed_activations_change_no_gradient():
    model = small_model()
    objective, batch = Objective(model, ObjectiveConfig()), batch_for(model)
    drawn = draw(objective.config, 0, [0, 1], 20, 16, "cpu")
    gradients = []
    for checkpointed in (False, True):
        model.zero_grad()
        model.transformer.checkpoint_activations = checkpointed
        objective(batch, *drawn)["loss"].backward()
        gradients.append([p.grad.clone() for p in model.transformer.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_alignment_pulls_the_features_of_its_layer_towards_the_embedding():
    model = small_model()
    head = AlignmentHead(48, 6)
    objective = Objective(model, ObjectiveConfig(latent_weight=0.0, alignment_weight=1.0, alignment_layer=1), head)
    batch = replace(batch_for(model), event=torch.randn(2, 6, generator=torch.Generator().manual_seed(2)))
    drawn = draw(objective.config, 0, [0, 1], 20, 16, "cpu")
    trained = [*head.parameters(), *model.transformer.layers[0].parameters()]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    first = float(objective(batch, *drawn)["alignment"])
    for _ in range(30):
        optimizer.zero_grad()
        out = objective(batch, *drawn)
        out["loss"].backward()
        optimizer.step()
    assert float(out["alignment"].detach()) < 0.3 * first
    assert not model.transformer.layers[1].attention.wq.weight.grad.any()  # above the aligned layer


def test_frames_can_be_aligned_one_by_one():
    head = AlignmentHead(4, 3)
    features = torch.randn(2, 7, 4)
    frame_wise = head(features, torch.randn(2, 7, 3))
    assert frame_wise.shape == () and 0 <= float(frame_wise.detach()) <= 2


def test_cepstral_embedding_tells_spectra_apart_and_not_levels():
    config = tiny_config().audio_codec
    embedding = CepstralEmbedding(config)
    generator = torch.Generator().manual_seed(0)
    slopes = torch.linspace(-1, 1, 128)[:, None] * torch.randn(64, 1, 1, generator=generator)
    latents = slopes + 0.1 * torch.randn(64, 128, 50, generator=generator)
    embedding.fit(latents)
    found = embedding(latents)
    assert found.shape == (64, embedding.dim)
    torch.testing.assert_close(embedding(latents[:1] - 0.5), found[:1], atol=1e-3, rtol=1e-3)
    similarity = torch.nn.functional.cosine_similarity(found[slopes[:, -1, 0] > 0.5].mean(0), found, dim=-1)
    assert similarity[slopes[:, -1, 0] < -0.5].mean() < 0 < similarity[slopes[:, -1, 0] > 0.5].mean()


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ConfigError, match="cepstra needs the band codec"):
        build_embedding("cepstra", small_model().config)
    with pytest.raises(ConfigError, match="use cepstra, clap"):
        build_embedding("vggish", tiny_config())
    with pytest.raises(ConfigError, match="gain_weight is for models with the band codec"):
        Objective(small_model(), ObjectiveConfig(gain_weight=1.0))
    with pytest.raises(ConfigError, match=r"alignment_layer must be in 1\.\.2"):
        Objective(small_model(), ObjectiveConfig(alignment_layer=3))
    with pytest.raises(ConfigError, match="max_time"):
        ObjectiveConfig(max_time=0)


def test_the_default_objective_is_the_recipe_of_the_codec():
    assert default_objective(tiny_config()).gain_weight > 0
    assert default_objective(small_model().config) == ObjectiveConfig()


def test_loss_falls_on_a_fixed_batch_from_scratch():
    torch.manual_seed(0)
    model = SAMAudio(tiny_config(dim=32, layers=1, heads=2))
    initialise(model)
    batch = batch_for(model)
    batch.gain = torch.sigmoid(batch.target - batch.residual)
    batch.power = torch.rand_like(batch.gain)
    objective = Objective(model, default_objective(model.config))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    drawn = draw(objective.config, 0, [0, 1], 20, 256, "cpu")
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective(batch, *drawn)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
