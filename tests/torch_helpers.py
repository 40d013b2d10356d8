"""What tests beside PyTorch's networks share."""

import torch


def randomise(reference):
    """Random norms and biases: what starts as zeros and ones would hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*reference.named_parameters(), *reference.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("bn3.weight"):  # else the maps grow from block to block
                tensor.uniform_(0.1, 0.3)
            elif "relative_position_bias_table" in name:
                tensor.normal_(std=0.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return reference.eval()
