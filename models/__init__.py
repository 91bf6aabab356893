"""Networks, their checkpoints and their tokenizers.

From the name of a model to its network: `load.load_model` opens a checkpoint
(`checkpoints`), reads its shape and constants (`config`), places its weights on the
device and makes the network (`families`) and the tokenizer (`tokenizers`).

A family is added in these steps:

1. a frozen config class in `config`, with constructors `from_hf` and `from_gguf`, and
   `expected_tensors`, against which a checkpoint is checked before anything is read;
2. the weights of the network and the tensors behind each in `checkpoints.weights`;
3. the network in a file of `families`: called with tokens, positions, caches and an
   attention operation, it hands that operation the heads of each layer and gives hidden
   states, and `logits` of them;
4. a reference in NumPy below `tests/support/models`, which shares no code with it.

A network that is not loaded from files needs none of this: `examples/own_model.py`.
"""
