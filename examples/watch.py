"""Watch a training in TensorBoard or in Weights & Biases, as on docs/guide/your_method.md."""

from rmadapter import Callback


def tensorboard(writer):  # torch.utils.tensorboard.SummaryWriter("runs/board")
    return Callback(
        lambda step: [writer.add_scalar(name, step[name], step["step"]) for name in step]
    )


def wandb(run):  # wandb.init(project="rmadapter")
    return Callback(lambda step: run.log(dict(step), step=int(step["step"])))
