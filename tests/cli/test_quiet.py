"""A command prints each line of information once, and its own words instead of Lightning's."""

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from recipes.cli.quiet import quiet


def test_a_line_is_printed_once_in_each_command(caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    for _ in range(2):
        with quiet():
            for line in ("run/last.ckpt is taken", "run/last.ckpt is taken", "another"):
                rank_zero_info(line)
    assert caplog.messages == ["run/last.ckpt is taken", "another"] * 2


def test_lightning_does_not_name_the_checkpoint_once_more(caplog, recwarn):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    with quiet():
        rank_zero_info("Restoring states from the checkpoint path at run/last.ckpt")
        rank_zero_info("Loaded model weights from the checkpoint at run/last.ckpt")
        rank_zero_warn("a warning")
        rank_zero_warn("a warning")
    rank_zero_info("Loaded model weights from the checkpoint at run/last.ckpt")
    assert len(caplog.messages) == 1
    assert len(recwarn) == 2
