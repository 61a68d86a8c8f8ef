"""torch.cuda without a GPU."""

import pytest
import torch
from devices import device_of, on_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_afterwards_torch_is_as_it_was() -> None:
    before = (torch.cuda.is_available(), torch.cuda.Stream, torch.Generator, torch.UntypedStorage.resize_)
    with on_device(device_of()):
        assert torch.cuda.is_available()
    assert (
        torch.cuda.is_available(),
        torch.cuda.Stream,
        torch.Generator,
        torch.UntypedStorage.resize_,
    ) == before


def test_tensors_are_on_the_device_and_have_no_numbers() -> None:
    with on_device(device_of()):
        tensor = torch.zeros(2, 3, device="cuda") + 1
        assert (tensor.is_cuda, tensor.device, tuple(tensor.shape)) == (True, torch.device("cuda:0"), (2, 3))
        assert tensor.cpu().device == torch.device("cpu")


def test_the_device_is_that_of_the_profile() -> None:
    with on_device(device_of("RTX 4090")):
        assert torch.cuda.get_device_name() == "NVIDIA GeForce RTX 4090"
        assert torch.cuda.get_device_capability() == (8, 9)
        assert (torch.cuda.device_count(), torch.cuda.current_device()) == (1, 0)
        properties = torch.cuda.get_device_properties(0)
        assert properties.multi_processor_count == 128
        free, total = torch.cuda.mem_get_info()
        assert free == total == properties.total_memory


def test_a_generator_of_the_device_can_be_made() -> None:
    with on_device(device_of()):
        generator = torch.Generator("cuda").manual_seed(3)
        assert torch.randn(4, generator=generator, device="cuda").is_cuda


def test_a_parameter_that_gets_data_of_another_device_moves_there() -> None:
    with on_device(device_of()):
        parameter = torch.nn.Parameter(torch.empty(4), requires_grad=False)
        data = torch.empty(4, device="cuda")
        parameter.data = data
        assert parameter.device == torch.device("cuda:0")
        assert torch.add(parameter, data).is_cuda


def test_new_tensor_takes_memory_on_the_device() -> None:
    device = device_of()
    with on_device(device):
        made = torch.empty(1, device="cuda").new_tensor([1.0, 2.0])
        assert (made.is_cuda, made.dtype, device.allocator.allocated) == (True, torch.float32, 512)
