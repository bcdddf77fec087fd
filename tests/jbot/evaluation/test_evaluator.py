import time

import numpy as np
import pytest
import torch
from helpers import SAMPLE, make_jets
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, adjusted_mutual_info_score, roc_auc_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from jbot.config import Config, override
from jbot.data import hdf5
from jbot.data.splits import targets
from jbot.evaluation.evaluator import (
    Evaluator,
    clustering,
    knn_probe,
    linear_probe,
    quick_metrics,
)
from jbot.evaluation.geometry import attention_entropy, effective_rank, spread
from jbot.evaluation.metrics import MetricError, classification, uncertainties
from jbot.evaluation.metrics_registry import find_metric, metric_names
from jbot.evaluation.probes import (
    GRADIENT,
    area_under_curve,
    class_probabilities,
    kmeans,
    logistic_regression,
    nearest,
    silhouette,
)
from jbot.trainer.embed import embed
from jbot.trainer.inputs import LabeledJets
from jbot.trainer.loop import TrialFailed, run_steps
from jbot.trainer.model import encode, hidden_keys, relative_entropy, unpack
from jbot.trainer.pack import Pack
from jbot.trainer.state import init_state
from jbot.trial.evaluate import final_metrics

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[
        pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ]),
]  # fmt: skip
LINE = torch.tensor([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]])
SIDES = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.fixture(scope="module", params=["untrained", "trained"])
def real(request):
    """Embeddings and labels of 1,500 real jets by jBOT-S: (bank, its labels, jets, their labels)."""
    data, state = hdf5.read(SAMPLE), init_state(Config(), [0], CPU)
    order = np.random.default_rng(0).permutation(len(data.labels))
    particles, labels = torch.from_numpy(data.particles[order]), torch.from_numpy(data.labels[order]).long()
    if request.param == "trained":
        config = override(Config(), {"train.batch": 50})
        lr, momentum = torch.tensor([3e-3]).double(), torch.tensor([0.996]).double()
        run_steps(state, particles.view(-1, 1, 50, 30, 4), Pack([config], CPU), (0,), lr, momentum)
    embedding = torch.from_numpy(embed(state.student, particles, Config()))
    return embedding[:700], labels[:700], embedding[700:], labels[700:]


def knn(bank, bank_labels, jets, labels, k):
    return quick_metrics("knn", knn_probe(bank, bank_labels, jets, k), labels)


def linear(bank, bank_labels, jets, labels):
    return quick_metrics("linear", linear_probe(bank, bank_labels, jets), labels)


def arrays(real, device="cpu"):
    """The same as scikit-learn takes it, and as the device does."""
    return [value.numpy() for value in real], [value.to(device) for value in real]


def test_knn_by_hand():
    # Neighbours of 0.05: two of class 0 and 0.2; of 0.65: 0.2 | 1.0, 1.1 -> class 1 by two votes of three.
    jets, labels = torch.tensor([[0.05], [0.66], [1.05]]), torch.tensor([0, 0, 1])
    metrics = knn(LINE, SIDES, jets, labels, k=3)
    assert metrics["knn_accuracy"] == pytest.approx(2 / 3)
    assert metrics["knn_auc"] == pytest.approx(1.0)  # votes for class 1: 0, 2/3, 1


@pytest.mark.parametrize("probe", [lambda *jets: knn_probe(*jets, k=3), linear_probe])
def test_probes_name_what_they_cannot_use(probe):
    broken = LINE.clone()
    broken[4] = torch.nan
    with pytest.raises(MetricError, match="finite embeddings, got NaN or infinity in training jet 4"):
        probe(broken, SIDES, LINE)
    with pytest.raises(MetricError, match="finite embeddings, got NaN or infinity in evaluated jet 4"):
        probe(LINE, SIDES, broken)
    with pytest.raises(MetricError, match=r"of each class and at least two classes, got \[3, 0, 3\]"):
        probe(LINE, 2 * SIDES, LINE)
    with pytest.raises(MetricError, match=r"at least two classes, got \[6\]"):
        probe(LINE, 0 * SIDES, LINE)
    with pytest.raises(MetricError, match="training jets with targets >= 0, got 0 jets"):
        probe(LINE[:0], SIDES[:0], LINE)


def test_knn_with_fewer_jets_than_k():
    with pytest.raises(MetricError, match="k-NN needs at least k = 30 training jets, got 6"):
        knn_probe(LINE, SIDES, LINE, k=30)


def test_linear_probe_separates_a_line_and_not_noise():
    assert linear(LINE, SIDES, LINE, SIDES)["linear_accuracy"] == 1.0
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=(2000, 4)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 5, 2000))
    held_out = linear(noise[:1000], labels[:1000], noise[1000:], labels[1000:])
    assert abs(held_out["linear_accuracy"] - 0.2) < 0.05
    assert abs(held_out["linear_auc"] - 0.5) < 0.05


def test_clustering_of_separate_clusters_is_perfect_and_of_noise_zero():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 40)
    tight = (10 * np.eye(5)[labels] + 0.01 * rng.normal(size=(200, 5))).astype(np.float32)
    metrics = clustering(torch.from_numpy(tight), torch.from_numpy(labels), np.random.default_rng(1))
    assert metrics["kmeans_ami"] == pytest.approx(1.0)
    assert metrics["silhouette"] > 0.99
    noise, labels = torch.from_numpy(rng.normal(size=(500, 5))).float(), torch.from_numpy(rng.integers(0, 5, 500))
    assert abs(clustering(noise, labels, np.random.default_rng(1))["kmeans_ami"]) < 0.03


def test_effective_rank_limits():
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.eye(4).repeat(5, 1)) == pytest.approx(4.0, abs=1e-3)


def test_spread_limits():
    assert spread(torch.ones(10, 3)) == pytest.approx(0.0, abs=1e-6)
    assert spread(torch.tensor([[1.0, 0.0], [-5.0, 0.0]])) == pytest.approx(1.0)


def test_embedding_is_the_raw_cls_token(tiny):
    state = init_state(tiny, [0], CPU)
    jets = torch.from_numpy(make_jets(700, 1))  # more than one chunk
    every = encode(unpack(state.student, tiny.model), jets[None], tiny.model).unflatten(1, (700, 31))
    np.testing.assert_allclose(embed(state.student, jets, tiny), every[0, :, 0].numpy(), atol=1e-5)


def test_attention_of_an_untrained_first_layer_is_uniform(tiny):
    state = init_state(tiny, [0], CPU)
    jets = torch.from_numpy(make_jets(50, 1))
    assert attention_entropy(state.student, jets, tiny) > 0.99
    state.student.mul_(20)
    assert attention_entropy(state.student, jets, tiny) < 0.9


@pytest.mark.parametrize("padding", ["corrected", "reference"])
def test_attention_entropy_is_that_of_all_jets_at_once(tiny, padding):
    config = override(tiny, {"model.padding": padding})
    state = init_state(config, [0], CPU)
    state.student.mul_(5)  # far from uniform
    jets = torch.from_numpy(make_jets(600, 1))[None]  # several chunks, the last one smaller
    attentions: list[torch.Tensor] = []
    encode(unpack(state.student, config.model), jets, config.model, attentions=attentions)
    hidden = None if padding == "reference" else hidden_keys(jets[..., 3] < 0.5)
    whole = min(float(relative_entropy(attention, hidden).min()) for attention in attentions)
    assert attention_entropy(state.student, jets[0], config) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 30, 700])
def test_neighbours_and_votes_are_those_of_sklearn(real, device, k):
    (bank, bank_labels, jets, labels), tensors = arrays(real, device)
    oracle = KNeighborsClassifier(n_neighbors=k, algorithm="brute").fit(bank, bank_labels)
    found = nearest(tensors[0], tensors[2], k).cpu().numpy()
    np.testing.assert_array_equal(np.sort(found), np.sort(oracle.kneighbors(jets, return_distance=False)))
    metrics, chances = knn(*tensors, k=k), oracle.predict_proba(jets)
    # Of classes with equally many votes both take the first: with 30 voters that decides one jet in ten.
    assert metrics["knn_accuracy"] == pytest.approx(accuracy_score(labels, oracle.predict(jets)), abs=1e-12)
    assert metrics["knn_auc"] == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr"), abs=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_votes_go_to_the_first_class(device):
    line, sides = LINE.to(device), SIDES.to(device)
    between = torch.tensor([[0.6]], device=device)  # 0.2 and 1.0 are equally near
    for answer, labels in ((1.0, [0]), (0.0, [1])):
        probed = nearest(line, between, 2).sort().values
        assert probed.tolist() == [[2, 3]]
        labels = torch.tensor(labels, device=device)
        assert knn(line, sides, between, labels, k=2)["knn_accuracy"] == answer


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("classes", [2, 5])
def test_linear_probe_is_that_of_sklearn(real, device, classes):
    real = [part for x, y in (real[:2], real[2:]) for part in (x[y < classes], y[y < classes])]
    (bank, bank_labels, jets, labels), tensors = arrays(real, device)
    bank, jets = bank.astype(np.float64), jets.astype(np.float64)  # it fits float32 in float32
    scaler = StandardScaler().fit(bank)
    oracle = LogisticRegression(solver="newton-cholesky", tol=1e-8).fit(scaler.transform(bank), bank_labels)
    chances = oracle.predict_proba(scaler.transform(jets))
    weights = logistic_regression(torch.from_numpy(scaler.transform(bank)).to(device), tensors[1])
    np.testing.assert_allclose(weights[:-1].T.cpu(), oracle.coef_, atol=1e-6)
    np.testing.assert_allclose(weights[-1].cpu(), oracle.intercept_, atol=1e-6)
    ours = class_probabilities(weights, torch.from_numpy(scaler.transform(jets)).to(device))
    np.testing.assert_allclose(ours.cpu(), chances, atol=1e-7)
    metrics = linear(*tensors)
    auc = roc_auc_score(labels, chances[:, 1]) if classes == 2 else roc_auc_score(labels, chances, multi_class="ovr")
    assert metrics["linear_accuracy"] == pytest.approx(accuracy_score(labels, chances.argmax(1)), abs=1e-6)
    assert metrics["linear_auc"] == pytest.approx(auc, abs=1e-6)


def test_logistic_regression_stops_at_the_minimum(real):
    # Scaled up, the classes nearly separate and the first full Newton steps overshoot.
    points, labels = 100 * real[0].double(), real[1]
    weights = logistic_regression(points, labels).requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        torch.nn.functional.pad(points, (0, 1), value=1.0) @ weights, labels, reduction="sum"
    )
    (loss + weights[:-1].square().sum() / 2).backward()
    assert float(weights.grad.abs().max()) < GRADIENT * len(points)


@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_regression_of_classes_far_apart(classes):
    labels = torch.arange(200) % classes
    points = 1e4 * torch.nn.functional.one_hot(labels, classes).double()
    weights = logistic_regression(points, labels)
    assert torch.equal(class_probabilities(weights, points).argmax(1), labels)
    assert torch.isfinite(weights).all()


def test_a_constant_feature_does_not_break_the_linear_probe(real):
    bank, bank_labels, jets, labels = real
    bank, jets = bank.clone(), jets.clone()
    bank[:, 3] = jets[:, 3] = 0.7
    without = [i for i in range(bank.shape[1]) if i != 3]
    expected = linear(bank[:, without], bank_labels, jets[:, without], labels)
    assert linear(bank, bank_labels, jets, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_auc_is_that_of_sklearn(device):
    rng = np.random.default_rng(0)
    positive = rng.random(500) < 0.3
    for scores in (rng.normal(size=500) + positive, rng.integers(0, 7, 500) / 7, np.zeros(500)):  # none, many, all tied
        ours = area_under_curve(torch.from_numpy(scores).to(device), torch.from_numpy(positive).to(device))
        assert ours == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_auc_without_one_side_is_nan():
    assert np.isnan(area_under_curve(torch.zeros(3), torch.ones(3, dtype=torch.bool)))
    assert np.isnan(area_under_curve(torch.zeros(3), torch.zeros(3, dtype=torch.bool)))


@pytest.mark.parametrize("device", DEVICES)
def test_clusters_are_those_of_sklearn(real, device):
    embedding, labels = real[2], real[3]
    for seed in range(3):
        oracle = KMeans(n_clusters=5, n_init=4, random_state=seed).fit(embedding.double().numpy())
        found = kmeans(embedding.to(device), 5, 4, seed).cpu().numpy()
        assert adjusted_mutual_info_score(oracle.labels_, found) == pytest.approx(1.0, abs=1e-12)
    assert silhouette(embedding.to(device), labels.to(device)) == pytest.approx(
        silhouette_score(embedding.double().numpy(), labels.numpy()), abs=1e-9
    )


def test_silhouette_of_a_lone_jet_counts_as_zero(real):
    embedding, labels = real[2].double(), real[3].clone()
    labels[0] = 9
    expected = silhouette_score(embedding.numpy(), labels.numpy())
    assert silhouette(embedding, labels) == pytest.approx(expected, abs=1e-10)


def test_kmeans_with_fewer_places_than_clusters():
    points = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    found = kmeans(points, 3, 2, 0)
    assert found[0] == found[1] != found[2] == found[3]


@pytest.mark.parametrize("device", DEVICES)
def test_effective_rank_and_spread_as_by_singular_values(real, device):
    embedding = real[2]
    singular = np.linalg.svd(embedding.double().numpy(), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    assert effective_rank(embedding.to(device)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    few = embedding[:3]  # fewer jets than features
    assert effective_rank(few.to(device)) < 3.001
    unit = embedding.double().numpy() / np.linalg.norm(embedding.double().numpy(), axis=1, keepdims=True)
    assert spread(embedding.to(device)) == pytest.approx(np.sqrt(unit.var(0).sum()), rel=1e-9)


def test_final_metrics_count_as_probe_seconds(tiny):
    jets = LabeledJets(particles=torch.from_numpy(make_jets(60, 1)), rows=torch.arange(60), labels=np.arange(60) % 5)
    evaluator, state = Evaluator(tiny, jets, jets, jets), init_state(tiny, [0], CPU)
    started = time.perf_counter()
    final_metrics(tiny, state, evaluator)
    assert 0.5 * (time.perf_counter() - started) < state.progress[0].probe_seconds < time.perf_counter() - started


def test_quick_metrics_are_those_with_uncertainties(real):
    bank, bank_labels, jets, labels = real
    probabilities = knn_probe(bank, bank_labels, jets, 30)
    careful = classification(probabilities.numpy(), labels.numpy(), list("qgwzt"))
    for name, value in quick_metrics("knn", probabilities, labels).items():
        assert careful[name.removeprefix("knn_")].value == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("task", "classes"), [("tqg", 2), ("qg", 2), ("all", 5)])
def test_each_task_has_its_targets(tiny, task, classes):
    # Top tagging tells t from the rest; the anomaly task has signal in its test jets that no classifier knows.
    mixture = {"tqg": [0, 1, 4, 4], "qg": [0, 1, 2, 3, 4], "all": range(5)}[task]
    config = override(tiny, {"data.train_jets": 110, "data.task": task})
    test_labels = np.resize(mixture, 60)
    train_labels = np.resize([0, 1] if task == "qg" else mixture, 110)
    particles = torch.from_numpy(make_jets(170, 1))
    train = LabeledJets(particles=particles, rows=torch.arange(110), labels=train_labels)
    test = LabeledJets(particles=particles, rows=torch.arange(110, 170), labels=test_labels)
    final = Evaluator(config, train, train, test).final(init_state(config, [0], CPU))
    assert {f"test/{name}" for name in final.measured} == set(metric_names(config))
    assert final.scores["knn/probability"].shape == (60, classes)
    wanted = targets(test_labels, task)
    known = wanted >= 0
    assert known.sum() == {"tqg": 60, "qg": 24, "all": 60}[task]
    right = final.scores["knn/probability"][known].argmax(1) == wanted[known]
    assert final.measured["knn_accuracy"].value == pytest.approx(right.mean())


def test_anomaly_scores_are_judged_with_an_encoder_of_quarks_and_gluons(tiny):
    config = override(tiny, {"data.train_jets": 110, "data.task": "qg", "anomaly.scan": True})
    particles = torch.from_numpy(make_jets(230, 1))
    particles[170:, :, :2] *= 3  # wider jets than the encoder's bank
    background, mixed = np.resize([0, 1], 170), np.resize(np.arange(5), 60)
    particles[170:][torch.from_numpy(mixed < 2)] = particles[:24]
    labels = np.concatenate([background, mixed])
    train, val, test = (
        LabeledJets(particles=particles, rows=torch.arange(*part), labels=labels[slice(*part)])
        for part in ((0, 110), (110, 170), (170, 230))
    )
    evaluator, state = Evaluator(config, train, val, test), init_state(config, [0], CPU)
    found = evaluator.final(state, scan=True)
    assert {f"test/{name}" for name in found.measured} == set(metric_names(config))
    scores = found.scores["anomaly/knn"]
    assert scores.shape == (60,)
    expected = roc_auc_score(mixed >= 2, scores)
    assert found.measured["anomaly_knn_auc"].value == pytest.approx(expected, abs=1e-6)
    gap = found.measured["anomaly_gmm_oracle_auc_t"].value - found.measured["anomaly_gmm_chosen_auc_t"].value
    assert found.measured["anomaly_gmm_optimism_t"].value == pytest.approx(gap, abs=1e-9)


def test_raw_features_are_the_flattened_particles(tiny):
    labels = np.arange(60) % 5
    particles = torch.from_numpy(make_jets(60, 1))
    rows = torch.arange(60)
    bank, test = (
        LabeledJets(particles=particles, rows=rows[part], labels=labels[part]) for part in (rows < 40, rows >= 40)
    )
    found = Evaluator(tiny, bank, test, test).raw()
    flat = particles.flatten(1).numpy()
    oracle = KNeighborsClassifier(n_neighbors=5, algorithm="brute").fit(flat[:40], labels[:40])
    assert found["knn_accuracy"].value == pytest.approx(oracle.score(flat[40:], labels[40:]))
    assert set(found) == {
        name.removeprefix("test/") for name in metric_names(tiny) if name.startswith(("test/knn", "test/linear"))
    }


def test_evaluator_keys_and_failure(tiny):
    labels = np.arange(60) % 5
    jets = LabeledJets(particles=torch.from_numpy(make_jets(60, 1)), rows=torch.arange(60), labels=labels)
    evaluator, state = Evaluator(tiny, jets, jets, jets), init_state(tiny, [0], CPU)
    point = evaluator.curve_point(state)
    assert {"val/knn_accuracy", "val/spread", "val/attention_entropy"} <= set(point)
    assert all(find_metric(key).declared for key in point)
    final = evaluator.final(state)
    assert {f"test/{name}" for name in final.measured} == set(metric_names(tiny))
    assert all(np.isfinite(one.value) for name, one in final.measured.items() if "rejection" not in name)
    assert uncertainties(final.measured) == uncertainties(evaluator.final(state).measured)
    assert final.scores["knn/probability"].shape == final.scores["linear/probability"].shape == (60, 5)
    state.student.fill_(float("nan"))
    with pytest.raises(TrialFailed, match="embedding is not finite after epoch 0"):
        evaluator.curve_point(state)
