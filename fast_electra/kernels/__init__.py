"""How it is computed: numbers, operators of ours and the compiler. Each does what plain torch does, faster.

precision          bf16 or float32, by the hardware
operator_builds    C++ operators, built once and by none that waits for ever
cpu_attention      attention on a CPU in bf16, with a backward pass of ours (cpu_attention.cpp)
exact_sums         gradients of norms and tables, summed in float32 and in one order
gated_gelu_kernel  the gradient of a gated GELU, in Triton
gated_gelu         the same in torch, and which layers take it
compilation        torch.compile, layer by layer
vocabulary_logits  passes over the vocabulary whose float32 logits are never whole
"""
