"""From text to a corpus: one flat stream of token ids on disk, in Megatron's indexed format.

documentation   text that is always there: the interpreter's own
tokenizer       one tokenizer for a corpus, its models and their exports
hub             data sets of the `datasets` library as texts
documents       files, folders and data sets as a stream of documents
megatron_index  which tokens are a document
manifest        what a corpus is made of
tokenization    documents to ids, in worker processes
corpus_writer   documents to a corpus on disk
corpus          a corpus, read through the memory map
"""
