import pytest
import torch
from lightning.pytorch import Callback

from datamodules import Digits
from recipes import Supervised
from recipes.callbacks import CompileEncoder
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


class Failure(Callback):
    """Raises an error at a hook."""

    def __init__(self, hook):
        setattr(self, hook, self.fail)

    def fail(self, *_):
        raise RuntimeError("out of luck")


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_zero_grad"])
def test_a_run_that_fails_leaves_torch_compile_and_the_encoder_as_they_were(hook):
    recipe = Supervised(ConvNet((4,)), 10, scheduler=None)
    trainer = quiet_trainer(max_steps=2, limit_val_batches=0, callbacks=[CompileEncoder("eager"), Failure(hook)])
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(recipe, Digits(size=8))
    assert recipe.encoder._compiled_call_impl is None
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(1))
    assert len(graphs) == 1
