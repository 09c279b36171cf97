from recipes.cli.changes import changes, refusal, told


def config(lr=0.1, widths=(4, 8), optimizer="torch.optim.SGD", patience=1, **others):
    encoder = {"class_path": "recipes.nn.ConvNet", "init_args": {"widths": list(widths)}}
    optimizer = {"class_path": optimizer, "init_args": {"lr": lr}}
    callbacks = [{"class_path": "EarlyStopping", "init_args": {"patience": patience}}, {"class_path": "Timer"}]
    return {
        "model": {"class_path": "recipes.SimCLR", "init_args": {"encoder": encoder, "optimizer": optimizer}},
        "trainer": {"max_epochs": 2, "callbacks": callbacks},
        **others,
    }


def test_changed_options_are_named_with_both_values():
    assert changes(config(), config(lr=1e-6, widths=(4, 16), patience=50)) == {
        "model.encoder.widths": "[4, 8] → [4, 16]",
        "model.optimizer.lr": "0.1 → 1e-06",
        "trainer.callbacks.0.patience": "1 → 50",
    }


def test_an_object_of_another_class_is_one_change():
    assert changes(config(), config(optimizer="torch.optim.Adam", lr=1)) == {"model.optimizer": "SGD → Adam"}


def test_what_belongs_to_one_run_or_is_new_in_this_version_is_no_change():
    then = config(name="a", ckpt_path=None)
    assert changes(then, config(name="b", ckpt_path="x.ckpt", new_option=1)) == {}
    logger = [{"class_path": "WandbLogger", "init_args": {"save_dir": place}} for place in ("old", "new")]
    assert changes({"logger": logger[0]}, {"logger": logger[1]}) == {}


def test_the_line_says_so_when_nothing_changes():
    assert told({}) == "this resume changes no option"
    assert told({"a.b": "1 → 2", "c": "true → null"}) == "changed by this resume: a.b (1 → 2), c (true → null)"


def test_a_refusal_names_the_options_that_may_be_the_reason():
    changed = changes(config(), config(lr=1, widths=(4, 16), patience=50))
    assert refusal(changed, "sizes differ") == (
        "model.encoder.widths ([4, 8] → [4, 16]) cannot change on a resume: sizes differ"
    )
    assert refusal({"model.optimizer.lr": "1 → 2"}, "sizes differ") == "sizes differ"
