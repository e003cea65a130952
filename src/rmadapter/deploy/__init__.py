"""A fitted model leaves the package: a folder that answers as `predict` does, without torch.

cli        the verbs
export     run -> folder: what lies in it, and how it is written whole or not at all
graph      a fitted method as one graph of ONNX, OpenVINO or torch: pixels in, probabilities out
tower      its text encoder as another graph, with the tokenizer
int8       that graph with weights of 8 bits, chosen among several by their answers
parity     the exported model asked about the same images as the fitted one
runtime    the model's answers by NumPy, Pillow and onnxruntime alone
engines    what computes the graph: onnxruntime, OpenVINO, torch or LiteRT
adding     classes that the model is told by name
card       README.md of the folder
push       run -> repository on the Hugging Face hub, without what is private
modelcard  README.md of the repository
web        a static page around the graph
onefile    that module and all that it takes from this package, as one file
"""
