"""What the checks say, in Chinese: {the English sentence, or its template: the translation}.

A case's note is translated by its phrases, which stand between commas. tests/test_language.py finds
what is missing here, what nobody says any more, and placeholders that differ. prompt: 提示词;
hint: 提示; clip: 裁剪; cut: 截断; spread: 差异; end token: 结束符."""

import re

from .language import PLACEHOLDER, question_of, whole

HINTS = {  # of the known mistakes; what stands before the mark is said of one that is alone
    "With an input it agrees. | What should be left of the input's part when there is no input?":
        "有输入（input）时结果一致。|没有输入时，输入那一段应该剩下什么？",
    "Without an input it agrees. | Where in the text should the input stand?":
        "没有输入（input）时结果一致。|输入应该放在文本的什么位置？",
    "The input is a space or a new line, and yours leaves it out. | Which single string means: no "
    "input?":
        "这里的输入是一个空格或一个换行，你的版本把它省略了。|究竟哪一个字符串才表示“没有输入”？",
    "Where the texts neither begin nor end with white space it agrees. | Who may change the words "
    "of the user?":
        "文本首尾没有空白时结果一致。|用户写的内容，谁有权改动？",
    "All the lines with text are right. | What stands between two parts?":
        "有文字的各行都对。|两个部分之间应该隔着什么？",
    "All but the last character is right. | On which line should the model's first word stand?":
        "除了最后一个字符都对。|模型写的第一个词应该在哪一行？",
    "Yours is one character too long. | Between which two parts are the empty lines, and does one "
    "come after the last header?":
        "你的结果多了一个字符。|空行在哪两个部分之间？最后一个标题后面也有空行吗？",
    "The parts and their order are right. | On which line does the text after a header begin?":
        "各部分及其顺序都对。|标题之后的文字从哪一行开始？",
    "All the parts are there. | What is the last thing that the model should read before it "
    "answers?":
        "各部分都在。|模型开始回答之前，最后读到的应该是什么？",
    "The end is right. | With which line does this course's prompt begin?":
        "结尾是对的。|本课程的提示词以哪一行开头？",
    "It agrees but for an instruction that holds the text {input}. | What does the second "
    "replacement see after the first one?":
        "只有当指令里含有 {input} 这几个字符时才不一致。|第一次替换之后，第二次替换看到的是什么？",
    "The input_ids are right. | Count the labels that are not -100: should the model learn to "
    "write the question?":
        "input_ids 是对的。|数一数不等于 -100 的标签：模型应该学习写问题吗？",
    "One label is missing. | Which token should be the first that has a label?":
        "少了一个标签。|第一个该有标签的词元是哪一个？",
    "There is one label too many. | Where does the prompt end?":
        "多了一个标签。|提示词到哪里为止？",
    "The labels are right. | What does the model's embedding have at index -100, and which of the "
    "two lists does the model read?":
        "labels 是对的。|模型的嵌入表里有编号为 -100 的行吗？两个列表中，模型读的是哪一个？",
    "Your labels are right, one place too early. | sft_loss compares position t with label t + 1 "
    "by itself: how often is that shift needed?":
        "你的标签都对，只是早了一位。|sft_loss 自己就会拿位置 t 去对 t + 1 处的标签：这个错位需要"
        "做几次？",
    "Everything but the end is right. | How will the model know when to stop?":
        "除了结尾都对。|模型怎么知道该停下来？",
    "The input_ids are right. | Which token does the model have to predict in order to stop, and "
    "is it trained to?":
        "input_ids 是对的。|要停下来，模型必须预测出哪个词元？它在训练中学过吗？",
    "They differ where the response itself ends with the end token. | Does this function look at "
    "what the response holds?":
        "回答本身以结束符结尾时不一致。|这个函数需要看回答里有什么吗？",
    "Where there is room it agrees. | Where the response was cut: is that place the end that the "
    "writer meant?":
        "长度够时结果一致。|回答被截断了：截断的地方是作者想要的结尾吗？",
    "Where there is room it agrees. | Which end of the list goes when it is too long?":
        "长度够时结果一致。|列表太长时，应该去掉哪一头？",
    "Where there is room it agrees. | What is max_length for?":
        "长度够时结果一致。|max_length 是做什么用的？",
    "The input_ids are right. | Must every token have its label, and every label its token?":
        "input_ids 是对的。|是不是每个词元都要有对应的标签，每个标签都要有对应的词元？",
    "The labels are right, but there are fewer labels than tokens. | What stands at the prompt's "
    "places?":
        "标签是对的，但标签比词元少。|提示词所在的位置应该放什么？",
    "They differ where the response repeats a word of the prompt. | Is it a token's id or its "
    "place that makes it part of the prompt?":
        "回答里重复了提示词中的词时不一致。|一个词元属不属于提示词，看的是它的编号还是它的位置？",
    "Where no token has the id 0 it agrees. | Is 0 a token like the others, and what does Python "
    "make of `if 0`?":
        "没有编号为 0 的词元时结果一致。|0 和别的词元一样吗？Python 怎么理解 `if 0`？",
    "The result is right, but the caller's list of prompt tokens has grown. | Which operations "
    "change a list, and which make a new one?":
        "结果是对的，但调用者传入的提示词列表变长了。|哪些操作会修改列表，哪些会生成新的列表？",
    "The result is right, but the caller's list of response tokens has grown. | What does "
    "append() do to a list, and what does `+` with a list of one token?":
        "结果是对的，但调用者传入的回答列表变长了。|append() 会怎样改变一个列表？用 `+` 接上只有一"
        "个词元的列表呢？",
    "It agrees but for rows that hold the pad token's id as a real token. | What tells padding "
    "from a real token, its id or its place?":
        "除了含有“编号等于填充符的真实词元”的行，其余都一致。|区分填充和真实词元，靠的是编号还是位"
        "置？",
    "It agrees but for rows that hold the pad token's id as a real token, such as an end token. | "
    "Is the model still trained to stop in those rows?":
        "除了含有“编号等于填充符的真实词元”（比如结束符）的行，其余都一致。|在那些行里，模型还学得"
        "到停下来吗？",
    "It agrees but for rows that hold the pad token's id as a real token. | How long is each row, "
    "and who knows that without looking at ids?":
        "除了含有“编号等于填充符的真实词元”的行，其余都一致。|每一行有多长？不看编号，从哪里可以知"
        "道？",
    "The input_ids are right. | Should the model learn to write padding, and which label says "
    "that it should not?":
        "input_ids 是对的。|模型应该学习写填充吗？哪个标签表示“这里不学”？",
    "The input_ids are right. | 0 is the id of a token: which label does the loss ignore?":
        "input_ids 是对的。|0 是某个词元的编号：损失会忽略的标签是哪一个？",
    "The labels are right. | The model looks every id up in its embedding: is there one of number "
    "-100?":
        "labels 是对的。|模型会拿每个编号去查嵌入表：有编号为 -100 的一行吗？",
    "With pad_id 0 it agrees. | Which id fills the rows?":
        "pad_id 为 0 时结果一致。|各行应该用哪个编号来填？",
    "Every row has the right tokens, in the wrong place. | On which side is the padding in "
    "training?":
        "每一行的词元都对，位置不对。|训练时填充在哪一侧？",
    "Rows of equal length agree. | How long must the batch be so that no row loses a token?":
        "各行等长时结果一致。|一批要多长，才不会让任何一行丢掉词元？",
    "Your attention mask is upside down. | Does 1 mean: look at this, or: leave it out?":
        "你的注意力掩码正好反了。|1 表示“看这里”，还是“略过”？",
    "Your attention mask is 0 on the prompt. | The prompt has no label, but may the model look at "
    "it?":
        "你的注意力掩码在提示词上是 0。|提示词没有标签，但模型能不能看它？",
    "Rows of equal length agree. | What should the model not look at in a row that is shorter "
    "than the others?":
        "各行等长时结果一致。|在比别的行短的一行里，模型不该看什么？",
    "The numbers are right. | Which dtype do the three tensors have?":
        "数值是对的。|三个张量应该是什么 dtype？",
    "The result is right, but the examples' own lists have grown. | What happens when the same "
    "example comes again in the next epoch?":
        "结果是对的，但样本自己的列表变长了。|下一个 epoch 再遇到同一个样本时会怎样？",
    "The logits at position t have already seen token t. Which token do they predict?":
        "位置 t 的 logits 已经看过词元 t。它们预测的是哪个词元？",
    "You compare the logits of one token with the label of the token before it. Which of the "
    "two has the model not yet seen?":
        "你拿一个词元处的 logits 去对它前一个词元的标签。这两个词元里，哪一个是模型还没有看到的？",
    "Your logits and labels are two places apart. | How far ahead does the model predict?":
        "你的 logits 和标签错开了两位。|模型向前预测几个词元？",
    "Does a token of a short answer weigh as much as one of a long answer, with yours and in "
    "the formula?":
        "短回答里的一个词元和长回答里的一个词元，在你的版本里权重一样吗？在公式里呢？",
    "Where every token has a label it agrees. | By how many tokens do you divide: do those with "
    "-100 belong to them?":
        "每个词元都有标签时结果一致。|你除以的是多少个词元：标签为 -100 的算在内吗？",
    "It differs where the first token has a label. | Can anything predict the first token?":
        "第一个词元有标签时不一致。|有什么能预测第一个词元吗？",
    "Your loss hardly moves, even where the logits are huge. | Does cross-entropy take logits or "
    "probabilities?":
        "哪怕 logits 非常大，你的损失也几乎不变。|交叉熵接收的是 logits 还是概率？",
    "Without count it agrees. | When the batch comes in pieces, who knows how many tokens there "
    "are in all of it?":
        "不给 count 时结果一致。|一批分成几块送进来时，谁知道整批一共有多少个词元？",
    "Without count it agrees. | What have you divided by before you divide by count?":
        "不给 count 时结果一致。|在除以 count 之前，你已经除过什么了？",
    "With count given it agrees. | By what do you divide when there is no count?":
        "给了 count 时结果一致。|没给 count 时应该除以什么？",
    "It agrees but for batches where no label counts. | What is 0 divided by 0, and what is the "
    "smallest number that you may divide by?":
        "除了没有任何有效标签的批次，其余都一致。|0 除以 0 是多少？除数最小可以是多少？",
    "The numbers are right. | What does loss.backward() do with a 0 that was not computed from "
    "the logits?":
        "数值是对的。|一个不是由 logits 算出来的 0，loss.backward() 会怎么处理？",
    "The numbers are right, and backward() works. | Where there is no label, from what is your 0 "
    "computed: does its graph lead back to the logits?":
        "数值是对的，backward() 也能运行。|没有标签时，你的 0 是由什么算出来的：它的计算图能回到 "
        "logits 吗？",
    "Your loss is the expected one times -1. | Is a log-probability positive or negative, and "
    "which way does an optimiser go?":
        "你的损失正好是正确值的 -1 倍。|对数概率是正的还是负的？优化器朝哪个方向走？",
    "Where every token has a label it agrees. | Where the label is -100, what does your version "
    "train the model to write?":
        "每个词元都有标签时结果一致。|在标签为 -100 的地方，你的版本在教模型写什么？",
    "It agrees but for large logits, where yours is not finite. | What is the softmax of a token "
    "400 below the best one, in float32?":
        "除了 logits 很大时你的结果不是有限数，其余都一致。|一个词元比最好的低 400，它的 softmax "
        "在 float32 里是多少？",
    "It agrees but for large logits. | What is the largest loss that yours can give, and its "
    "gradient there?":
        "除了 logits 很大时，其余都一致。|你的版本最大能给出多大的损失？那里的梯度是多少？",
    "Over which dimension do your probabilities sum to 1: over the words, or over the "
    "positions?":
        "你的概率沿哪一维相加等于 1：沿词表，还是沿位置？",
    "Your numbers change when the same constant is added to all logits of a position. | What "
    "turns logits into log-probabilities?":
        "给某个位置的所有 logits 加上同一个常数，你的结果就变了。|怎样把 logits 变成对数概率？",
    "With float32 logits it agrees. | bfloat16 has two to three digits: which dtype is the loss "
    "promised in?":
        "logits 是 float32 时结果一致。|bfloat16 只有两三位有效数字：说明里约定损失是什么 dtype？",
    "Batches of equal size agree. | Does a token of a small batch weigh as much as one of a large "
    "batch?":
        "各批大小相同时结果一致。|小批里的一个词元和大批里的一个词元，权重一样吗？",
    "One batch alone agrees. | Which comes first, the mean or the exponential?":
        "只有一批时结果一致。|先取平均还是先取指数？",
    "One batch alone agrees, and your weights are right. | Of what do you take the mean, of "
    "losses or of perplexities?":
        "只有一批时结果一致，你的权重也是对的。|你平均的是什么：损失还是困惑度？",
    "Your result is the logarithm of the expected one. | What is missing between a loss and a "
    "perplexity?":
        "你的结果是正确值的对数。|从损失到困惑度还差一步什么？",
    "batch_losses are means over a batch's tokens. How do you get the sum over its tokens back?":
        "batch_losses 是每批按词元取的平均。怎样从它还原出这一批所有词元的总和？",
    "Your sum is over tokens. What is it divided by?": "你的总和是对词元求的。它除以了什么？",
    "The losses are in nats, natural logarithms. Which number must be raised to the mean?":
        "损失的单位是 nat，即自然对数。应该对哪个底数取这个平均值次幂？",
    "Yours is 1 divided by the expected one. | A loss is already minus a log-probability: is "
    "another minus needed?":
        "你的结果是 1 除以正确值。|损失已经是负的对数概率：还需要再加一个负号吗？",
    "Yours is one more than the expected index everywhere. | At which number do positions start?":
        "你的结果处处比正确的下标大 1。|位置从几开始数？",
    "Rows without padding on the right agree. | What stands at the last position of a row with "
    "padding on the right?":
        "右侧没有填充的行都对。|右侧有填充的一行，最后一个位置上是什么？",
    "Rows without padding on the left agree. | A row of two tokens with padding before them: at "
    "which position is the second one?":
        "左侧没有填充的行都对。|一行前面是填充、后面有两个词元：第二个词元在哪个位置？",
    "In a row without padding your index lies outside the row. | At which number do positions "
    "start, and at which one do counts?":
        "没有填充的行里，你的下标越出了这一行。|位置从几开始数，个数从几开始数？",
    "Yours is the position of each row's first real token. | Where several entries are largest, "
    "which of them does argmax give?":
        "你的结果是每行第一个真实词元的位置。|有几个元素并列最大时，argmax 给出的是哪一个？",
    "Rows with padding on the right agree. | What is before the first 0 where there is no 0, and "
    "where the row begins with 0?":
        "右侧有填充的行都对。|如果一行里没有 0，或者一行以 0 开头，“第一个 0 之前”是哪里？",
    "Rows with padding on one side agree. | Where a row has padding on both sides, is the first 0 "
    "the one that you want?":
        "只有一侧有填充的行都对。|两侧都有填充时，你要找的是第一个 0 吗？",
    "Yours is how far the last real token is from the right end. | How do you turn a distance "
    "from the right end into a position from the left?":
        "你的结果是最后一个真实词元离右端有多远。|离右端的距离，怎样换算成从左边数的位置？",
    "The numbers are right. | What is the shape (B,) of one number a row, and what is yours?":
        "数值是对的。|每行一个数，形状应该是 (B,)；你的是什么形状？",
    "The numbers are right. | What dtype must a tensor have to be used as an index?":
        "数值是对的。|张量要当作下标使用，必须是什么 dtype？",
    "Rows without padding on the left agree. | Where is the last real token of a row that begins "
    "with padding?":
        "左侧没有填充的行都对。|以填充开头的一行，最后一个真实词元在哪里？",
    "Yours fails in rows without padding, because position T does not exist. | At which number do "
    "positions start?":
        "没有填充的行会出错，因为位置 T 不存在。|位置从几开始数？",
    "Yours is the score at each row's first real token. | How much of the answer has the model "
    "read at a row's first real token?":
        "你取的是每行第一个真实词元处的得分。|在一行的第一个真实词元处，模型读了回答的多少？",
    "Rows of one token agree. | Which tokens' scores have seen the whole answer?":
        "只有一个词元的行都对。|哪些词元的得分看过整个回答？",
    "Rows of one token agree. | How many tokens' scores should count?":
        "只有一个词元的行都对。|应该算上几个词元的得分？",
    "Rows of one token agree. | Is the token with the best score the one that has seen the whole "
    "answer?":
        "只有一个词元的行都对。|得分最高的词元，就是看过整个回答的那个吗？",
    "With two rows or more it agrees. | Which dimensions does squeeze() remove when B is 1?":
        "两行或更多行时结果一致。|B 为 1 时，squeeze() 会去掉哪些维？",
    "The numbers are right. | What is the shape of one score a row, and what is yours?":
        "数值是对的。|每行一个得分，形状应该是什么？你的是什么？",
    "Yours has the shape (B, B): each row is read at every row's index. | How do you tell each "
    "row to use its own index?":
        "你的结果形状是 (B, B)：每一行都按所有行的下标各读了一遍。|怎样让每一行只用自己的下标？",
    "The numbers are right. | How does the loss reach the model when the scores are turned into "
    "plain numbers?":
        "数值是对的。|得分变成普通的数之后，损失的梯度怎么回到模型？",
    "Your probability and the expected one add up to 1. | Which answer's win is your probability "
    "about?":
        "你的概率和正确的概率相加等于 1。|你的概率说的是哪个回答获胜？",
    "A probability lies between 0 and 1. What maps a difference of scores to it?":
        "概率在 0 和 1 之间。用什么函数把得分之差变成概率？",
    "Your result does not depend on the rejected answer. | When both are excellent, how likely is "
    "the chosen one to win?":
        "你的结果与被拒绝的回答无关。|两个回答都非常好时，被选中的那个获胜的概率有多大？",
    "Your probabilities add up to 1 over the pairs. | Does a pair compete with the other pairs?":
        "你的概率在各对之间相加等于 1。|一对会和别的对竞争吗？",
    "Add the same number to all scores, and your result changes. | Of what did Bradley and Terry "
    "take the ratio, of scores or of their exponentials?":
        "给所有得分加上同一个数，你的结果就变了。|Bradley 和 Terry 取的是什么的比：得分的比，还是"
        "得分的指数的比？",
    "It agrees but for large scores, where yours is no number. | What is exp(200) in float32, and "
    "what depends on the difference alone?":
        "除了得分很大时你的结果是 NaN，其余都一致。|exp(200) 在 float32 里是多少？什么只取决于差？",
    "Yours is negative, the logarithm of the expected one. | Which is asked for here: the "
    "probability or its logarithm?":
        "你的结果是负的，是正确值的对数。|这里要的是哪一个：概率，还是它的对数？",
    "Yours is 0 or 1. | How sure is the model when two scores are close?":
        "你的结果不是 0 就是 1。|两个得分很接近时，模型有多大把握？",
    "Yours is the mean of the expected ones. | How many numbers are asked for, one a pair or one "
    "a batch?":
        "你的结果是正确值的平均。|要的是几个数：每对一个，还是一批一个？",
    "Your loss falls when the rejected answer gets a better score. | Which of the two answers "
    "should win?":
        "被拒绝的回答得分升高时，你的损失反而下降。|两个回答中哪一个应该赢？",
    "It agrees but where the difference is -120, and yours is not finite there. | What is the "
    "sigmoid of -120 in float32, and which function computes its logarithm in one go?":
        "除了差为 -120 时你的结果不是有限数，其余都一致。|-120 的 sigmoid 在 float32 里是多少？哪"
        "个函数能一步算出它的对数？",
    "It agrees but where the difference is -120: yours stops at 18.4 and has no gradient there. | "
    "Which function computes the logarithm of a sigmoid in one go?":
        "除了差为 -120 时，其余都一致：你的结果停在 18.4，那里没有梯度。|哪个函数能一步算出 "
        "sigmoid 的对数？",
    "Without count, yours is the expected one times the number of pairs. | What does count mean "
    "when it is None?":
        "不给 count 时，你的结果是正确值乘以“一共有几对”。|count 为 None 表示什么？",
    "One pair alone agrees. | Which comes first, the mean over the pairs or the logarithm of each "
    "pair's sigmoid?":
        "只有一对时结果一致。|先对各对取平均，还是先对每对的 sigmoid 取对数？",
    "One pair alone agrees. | What is the loss of each pair by itself, and by what is their sum "
    "divided?":
        "只有一对时结果一致。|每一对各自的损失是多少？它们的和除以什么？",
    "Without a margin it agrees. | Should a pair that must win by more have a larger loss or a "
    "smaller one?":
        "没有 margin 时结果一致。|一对必须赢得更多，它的损失应该更大还是更小？",
    "Without a margin it agrees. | By how much should the chosen score win?":
        "没有 margin 时结果一致。|被选中的得分应该高出多少？",
    "Without a margin it agrees. | Yours only adds a number to the loss: what is that number's "
    "gradient?":
        "没有 margin 时结果一致。|你只是给损失加了一个数：这个数的梯度是多少？",
    "It agrees with a margin that is one number. | Is a tensor of five margins true or false, and "
    "what does `is not None` ask instead?":
        "margin 是一个数时结果一致。|一个装着五个 margin 的张量是真还是假？`is not None` 问的又是"
        "什么？",
    "Yours has kinks: a tie costs exactly 1, not ln 2. | Which loss did Bradley and Terry's "
    "probability lead to?":
        "你的损失有折点：平局时正好是 1，而不是 ln 2。|由 Bradley 和 Terry 的概率得到的是哪种损失"
        "？",
    "Yours is minus the probability itself. | What is done to a probability first, so that a pair "
    "that is very wrong costs very much?":
        "你的结果是概率本身的相反数。|要让错得离谱的一对付出很大代价，应该先对概率做什么？",
    "Yours is the expected loss times -1. | Is the logarithm of a probability positive or "
    "negative?":
        "你的结果是正确损失的 -1 倍。|概率的对数是正的还是负的？",
    "Add the same number to all scores, and your loss changes. | Is an answer good by itself "
    "here, or better than another one?":
        "给所有得分加上同一个数，你的损失就变了。|这里说的是一个回答本身好，还是它比另一个更好？",
    "Without count it agrees. | When the batch comes in pieces, who knows how many pairs there "
    "are in all of it?":
        "不给 count 时结果一致。|一批分成几块送进来时，谁知道整批一共有多少对？",
    "Without count, yours is half of the expected one. | Is the mean over pairs or over answers?":
        "不给 count 时，你的结果是正确值的一半。|平均是按对取的，还是按回答取的？",
    "Without ties it agrees. | A model that gives every answer the same score has learned "
    "nothing: what accuracy should it have?":
        "没有平局时结果一致。|一个给所有回答打同样分数的模型什么也没学到：它的准确率应该是多少？",
    "Without ties it agrees. | What does a tie count for here?":
        "没有平局时结果一致。|这里平局算多少？",
    "Yours counts the pairs that the model has wrong. | Which score should be the higher one?":
        "你数的是模型判断错的那些对。|哪一个得分应该更高？",
    "Yours is a count. | By what must a number of pairs be divided?":
        "你的结果是个数。|对了几对，这个数要除以什么"
    "？",
    "Yours is the expected one times 100. | What is all of it: 1 or 100?":
        "你的结果是正确值的 100 倍。|全部都对是 1 还是 100？",
    "Yours is how sure the model is. | How is a pair counted when it is won with 51%?":
        "你的结果是模型有多大把握。|以 51% 的概率赢下的一对，应该怎么算？",
    "Yours is below 0 where most pairs are wrong. | What does a wrong pair add to the number of "
    "right ones?":
        "大多数对都错时，你的结果小于 0。|错的一对给“对的个数”贡献多少？",
    "Add 100 to all scores, and your accuracy is 1. | What is the chosen score to be compared "
    "with?":
        "给所有得分加上 100，你的准确率就成了 1。|被选中的得分应该和什么比？",
    "Yours is 0 or 1. | What is compared first: the two scores of each pair, or the means?":
        "你的结果不是 0 就是 1。|先比较什么：每一对的两个得分，还是平均值？",
    "One pair alone agrees. | How many comparisons do you make: B, or B times B?":
        "只有一对时结果一致。|你做了多少次比较：B 次，还是 B 乘 B 次？",
    "Your entries are right, one a pair. | How many numbers are asked for?":
        "你的各个元素都对，每对一个。|要的是几个数？",
    "At its own position the model has already read the token. Which position had to guess it?":
        "在词元自己的位置上，模型已经读过它了。要猜出它的是哪个位置？",
    "T tokens go in, and T-1 numbers come out. | The logits already begin one position before the "
    "response: what else did you cut?":
        "进去 T 个词元，出来 T-1 个数。|logits 本来就从回答之前一个位置开始：你又去掉了什么？",
    "Does the sum of exp of your numbers over the whole vocabulary make 1?":
        "对你的结果取 exp，再对整个词表求和，等于 1 吗？",
    "Your numbers lie between 0 and 1. | In what range are logarithms of probabilities?":
        "你的结果在 0 和 1 之间。|概率的对数在什么范围里？",
    "It agrees on small logits, and on large ones it is -inf. | What is softmax of a logit 200 "
    "below the best, in float32?":
        "logits 小时结果一致，大时是 -inf。|一个 logit 比最好的低 200，它的 softmax 在 float32 里"
        "是多少？",
    "Over which dimension should the probabilities sum to 1: the positions or the vocabulary?":
        "概率应该沿哪一维相加等于 1：沿位置，还是沿词表？",
    "With several rows and tokens it agrees. | What becomes of a batch of one row, or of one "
    "token, in your last step?":
        "有多行、多个词元时结果一致。|只有一行或只有一个词元时，你的最后一步会把它变成什么？",
    "At temperature 1 it agrees. | From which distribution were the tokens sampled?":
        "温度为 1 时结果一致。|这些词元是从哪个分布里采样的？",
    "At temperature 1 it agrees. | Does a high temperature make a distribution flatter or "
    "sharper, and does yours?":
        "温度为 1 时结果一致。|高温使分布更平还是更尖？你的呢？",
    "At temperature 1 it agrees. | Do your probabilities still sum to 1 at another temperature?":
        "温度为 1 时结果一致。|换一个温度，你的概率相加还等于 1 吗？",
    "In float32 it agrees. | In bfloat16 numbers have three digits: when do you change the dtype?":
        "float32 时结果一致。|bfloat16 只有三位左右有效数字：你在哪一步转换 dtype？",
    "In float32 it agrees. | Which dtype has the result when the logits are bfloat16?":
        "float32 时结果一致。|logits 是 bfloat16 时，结果应该是什么 dtype？",
    "Can the logarithm of a probability be positive?": "概率的对数可能是正数吗？",
    "Your function divides the logits where they stand. Who else still needs them?":
        "你的函数就地把 logits 除以了温度。还有谁要用它们？",
    "Every row with an end is one token short. | Should the policy learn to stop?":
        "有结束符的每一行都少了一个词元。|策略应不应该学会停下来？",
    "Rows with one end token at their end agree. | How many end tokens may have come before a "
    "token that counts?":
        "只在末尾有一个结束符的行都对。|一个有效的词元，前面可以有几个结束符？",
    "The mask ends one token after the end token. | Do you count the end tokens before a token, "
    "or those before its neighbour?":
        "你的掩码多留了结束符之后的一个词元。|你数的是一个词元之前的结束符，还是它邻居之前的？",
    "Rows with one end token agree. | Which of several end tokens ends a response?":
        "只有一个结束符的行都对。|有好几个结束符时，哪一个结束回答？",
    "Only end tokens are masked. | Are the words that follow an end token part of the response?":
        "只有结束符被遮住了。|结束符后面的词还算回答吗？",
    "With one end token it agrees. | What of the other ids in eos_ids?":
        "结束符只有一种时结果一致。|eos_ids 里其他的编号呢？",
    "Rows with an end token agree. | What does your search give in a row where it finds nothing?":
        "有结束符的行都对。|你的查找在一行里什么也没找到时，返回什么？",
    "Rows with an end token agree. | Is a response that was cut off before its end no response?":
        "有结束符的行都对。|还没写完就被截断的回答，就不算回答了吗？",
    "With one row every token is kept. | Along which dimension do you count?":
        "只有一行时，所有词元都被保留。|你沿哪一维计数？",
    "The zeros and ones are right. | The mask will be multiplied with losses: which dtype should "
    "it have?":
        "0 和 1 都对。|掩码之后要和损失相乘：它应该是什么 dtype？",
    "k1 is exactly -1 times the expected one. | What should the sign of k1 be where the policy "
    "likes a token better than the reference does?":
        "k1 正好是正确值的 -1 倍。|策略比参考模型更喜欢一个词元时，k1 的符号应该是什么？",
    "Your k1 is never negative. | Is the mean still the KL when k1 is never negative?":
        "你的 k1 从不为负。|k1 从不为负时，它的均值还是 KL 吗？",
    "k2 is exactly twice the expected one. | For policies that are close the KL is about (log "
    "r)^2, times what?":
        "k2 正好是正确值的两倍。|两个策略很接近时，KL 约等于 (log r)^2 的几倍？",
    "Your k3 agrees while the policies are close, and differs when they are far apart. | Which "
    "way round is r?":
        "两个策略接近时你的 k3 一致，相差很远时不一致。|r 是谁除以谁？",
    "What is your k3 where both policies are the same, and what is the KL of a distribution "
    "from itself?":
        "两个策略相同时，你的 k3 是多少？一个分布与它自己的 KL 又是多少？",
    "Can your k3 be positive? And can a KL be negative?": "你的 k3 可能是正的吗？KL 可能是负的吗？",
    "Is your k3 ever negative? What does Schulman's k3 take off r - 1 so that it never is?":
        "你的 k3 会是负的吗？Schulman 的 k3 从 r - 1 里减去了什么，使它不会为负？",
    "The tokens were drawn from the policy, so likely ones already come up often. By what do "
    "you multiply?":
        "词元是从策略里抽出来的，概率大的本来就抽到得多。你还乘了什么？",
    "k2 agrees, k1 has the wrong sign and k3 is upside down. | Which of the two policies sampled "
    "the tokens?":
        "k2 一致，k1 的符号反了，k3 倒过来了。|词元是两个策略中的哪一个采样的？",
    "k1 agrees. | Do the names of the other estimators change anything in your function?":
        "k1 一致。|换成别的估计的名字，你的函数里有什么变化吗？",
    "Which shape is promised: a number a response or a number a token?":
        "说明里约定的形状是什么：每个回答一个数，还是每个词元一个数？",
    "The numbers are right. | Is it this function's business to decide what is constant? (The "
    "lesson once puts the policy second.)":
        "数值是对的。|哪一个是常数，该由这个函数来决定吗？（课程里有一处把策略放在第二个位置。）",
    "The numbers are right. | If this KL is added to a loss, what does it change in the policy?":
        "数值是对的。|如果把这个 KL 加进损失，它会改变策略的什么？",
    "The score arrives where it should. | Does a token with a large KL lose or gain?":
        "得分加在了该加的地方。|KL 大的词元应该吃亏还是得利？",
    "Rows without padding agree. | In a short row, what stands in the last column?":
        "没有填充的行都对。|短的一行，最后一列是什么？",
    "How much would a response of ten tokens earn in all?":
        "一个有十个词元的回答，一共会得到多少？",
    "Rows without padding agree. | Where in a short row does the sum so far equal the whole sum: "
    "on the last token only?":
        "没有填充的行都对。|在短的一行里，“到这里为止的和等于总和”在哪些地方成立：只在最后一个词元"
        "吗？",
    "A row's total agrees. | Which token should pay for which KL?":
        "一行的总和是对的。|哪个词元该为哪一份 KL 付账？",
    "Rows without padding agree. | What should the reward be where the mask is 0?":
        "没有填充的行都对。|掩码为 0 的地方，奖励应该是多少？",
    "All tokens but the last agree. | What of the last token's own KL?":
        "除了最后一个词元都对。|最后一个词元自己的 KL 到哪里去了？",
    "Scores are (B,) and rewards (B, T). To which dimension of the rewards does PyTorch line up "
    "a (B,)?":
        "得分的形状是 (B,)，奖励是 (B, T)。PyTorch 会把 (B,) 对到奖励的哪一维上？",
    "Counts start at 1. At which index is the last of n tokens?":
        "个数从 1 开始数。n 个词元中的最后一个，下标是多少？",
    "Rows with a token agree. | Where does the score go when there are no tokens, and should it "
    "go anywhere?":
        "有词元的行都对。|一个词元也没有时，得分该放到哪里？该放吗？",
    "The penalties are right. | Where does the score come in?": "惩罚是对的。|得分从哪里加进来？",
    "Your function changes the KL that it was given. Who else still needs it?":
        "你的函数改动了传给它的 KL。还有谁要用它？",
    "A_t needs A_{t+1}. From which end must the loop start?":
        "A_t 需要 A_{t+1}。循环必须从哪一头开始？",
    "Your advantages are the expected ones, the last token's first. | The loop collects the "
    "advantages from the end: in which order do they lie in the list, and what turns it round?":
        "你的优势都对，只是最后一个词元的排在最前面。|循环是从末尾开始收集优势的：它们在列表里是什"
        "么顺序？用什么把它倒过来？",
    "The advantages are right. Yours is the sum of the rewards to come, which is A + V for lambda "
    "1 alone. | What does the formula add to A?":
        "优势是对的。你的回报是后面所有奖励之和，只有 lambda 为 1 时它才等于 A + V。|公式给 A 加上"
        "了什么？",
    "Rows without padding agree, and the others differ up to where the mask turns 0. | Does your "
    "running sum start afresh at the end of each response, and is V past it 0?":
        "没有填充的行都对，其他行从掩码变成 0 的地方往前都不一致。|每个回答结束时，你的累加有没有"
        "重新开始？结束之后的 V 是 0 吗？",
    "The episode is over after the last token. What is the value of what comes then?":
        "最后一个词元之后，这一回合就结束了。之后的价值是多少？",
    "Which of gamma and lambda discounts V_{t+1} in delta?":
        "在 delta 里，给 V_{t+1} 打折的是 gamma 还是 lambda？",
    "Your advantages are those of lambda = 1. | By what does A_{t+1} shrink on its way to A_t?":
        "你的优势是 lambda = 1 时的优势。|A_{t+1} 传到 A_t 时要乘上什么？",
    "delta compares V_t with the reward and what?": "delta 拿 V_t 与奖励和什么作比较？",
    "The advantages are right. | The value function should learn the whole return: what must be "
    "added to A?":
        "优势是对的。|价值函数应该学整个回报：A 上要加什么？",
    "The advantages are right. | A = return - V: which sign has V in the return?":
        "优势是对的。|A = 回报 - V：那么在回报里 V 是什么符号？",
    "The numbers are right. | Should the policy's loss send gradients through the advantages into "
    "the value head?":
        "数值是对的。|策略损失的梯度应不应该经过优势流进价值头？",
    "Your function writes into the rewards that it was given. Who else still needs them?":
        "你的函数改写了传给它的奖励。还有谁要用它们？",
    "Without padding it agrees. | Which numbers belong to the mean and the variance?":
        "没有填充时结果一致。|哪些数应该进入均值和方差？",
    "Without padding it agrees. | You multiply by the mask: by how many entries do you divide?":
        "没有填充时结果一致。|你乘了掩码：那么除以几个元素呢？",
    "The mean is right. | Whose squares do you add up?": "均值是对的。|你把哪些数的平方加了起来？",
    "But for eps, every entry is sqrt(n / (n - 1)) times the expected one. | Which of the two "
    "variances do you divide by?":
        "不看 eps，你的每个元素都是正确值的 sqrt(n / (n - 1)) 倍。|两种方差，你用的是哪一种？",
    "With shift_mean False it agrees. | What should the mean be when shift_mean is True?":
        "shift_mean 为 False 时结果一致。|shift_mean 为 True 时，均值应该是多少？",
    "With shift_mean True it agrees. | What does your function do when shift_mean is False?":
        "shift_mean 为 True 时结果一致。|shift_mean 为 False 时，你的函数怎么做？",
    "With shift_mean True it agrees. | With shift_mean False the mean stays what it was: is the "
    "mean scaled in yours?":
        "shift_mean 为 True 时结果一致。|shift_mean 为 False 时，均值应保持不变：在你的版本里，均"
        "值也被缩放了吗？",
    "With shift_mean True it agrees. | Is a variance about 0 or about the mean?":
        "shift_mean 为 True 时结果一致。|方差是相对于 0 的，还是相对于均值的？",
    "Small numbers agree. | float32 has seven digits: how many of them are left when two squares "
    "of 10000 are subtracted?":
        "数小时结果一致。|float32 有七位有效数字：两个 10000 的平方相减之后还剩几位？",
    "A single row agrees. | Over what are mean and variance taken: a row or the batch?":
        "只有一行时结果一致。|均值和方差是在什么范围上取的：一行，还是整批？",
    "Is the variance of your result 1? Which power of the variance must a number be divided by?":
        "你的结果的方差是 1 吗？一个数应该除以方差的几次方？",
    "It agrees where eps is negligible. | Is eps added to the variance or to its root?":
        "eps 可以忽略时结果一致。|eps 是加在方差上，还是加在它的平方根上？",
    "With the default eps it agrees. | Do you use the eps that is given?":
        "用默认的 eps 时结果一致。|你用的是传进来的那个 eps 吗？",
    "Real entries agree. | What should stand where the mask is 0?":
        "真实的元素都对。|掩码为 0 的地方应该是什么？",
    "It agrees where there is something to whiten. | What is the variance of a single number, "
    "with n - 1 below?":
        "元素够多、能够白化时结果一致。|只有一个数、分母是 n - 1 时，方差是多少？",
    "It agrees where there is something to whiten. | From how many entries on is there an "
    "unbiased variance?":
        "元素够多、能够白化时结果一致。|至少要有几个元素，才有无偏方差？",
    "At ratio 1 it agrees. | Pessimistic means that the larger of the two losses counts: which "
    "one do you take?":
        "比率为 1 时结果一致。|“悲观”的意思是两个损失中取较大的：你取的是哪一个？",
    "Inside the clip it agrees. | When the ratio is 2 and the advantage negative, who pulls it "
    "back?":
        "在裁剪范围之内结果一致。|比率为 2 而优势为负时，谁把它拉回来？",
    "Inside the clip it agrees. | What keeps a large ratio from paying?":
        "在裁剪范围之内结果一致。|靠什么让很大的比率无利可图？",
    "At ratio 1 the value is right and the gradient is exactly -1 times the expected one. | Which "
    "way round is the ratio?":
        "比率为 1 时数值是对的，梯度正好是正确值的 -1 倍。|比率是谁除以谁？",
    "A ratio of probabilities is 1 where they are equal. What is a difference of "
    "log-probabilities there?":
        "两个概率相等时，它们的比率是 1。那时对数概率之差是多少？",
    "The paper maximises an objective; an optimiser minimises a loss. What is the sign of "
    "yours?":
        "论文是最大化目标，优化器是最小化损失。你的符号是哪一种？",
    "Where the policy has moved, your ratio is still 1. | Which policy sampled?":
        "策略已经变了，你的比率却还是 1。|采样的是哪个策略？",
    "Close to the clip range, not quite on it: are 1 - eps and 1 + eps bounds of the ratio or "
    "of its logarithm?":
        "在裁剪边界附近、但不正好在边界上的地方：1 - eps 和 1 + eps 是比率的界，还是比率的"
        "对数的界？",
    "The loss is right. | A ratio outside the clip counts only where the clipped term decides: "
    "when does it not?":
        "损失是对的。|比率超出裁剪范围的词元，只有在被裁剪的那一项起作用时才计数：什么时候它不起作"
        "用？",
    "The loss is right. | Inside the clip the two terms are equal: is such a token clipped?":
        "损失是对的。|在裁剪范围之内两项相等：这样的词元算被裁剪了吗？",
    "The numbers are right. | The fraction is only looked at: what does it keep in memory as long "
    "as it has a graph?":
        "数值是对的。|这个比例只是拿来看的：只要它还带着计算图，就会把什么留在内存里？",
    "The loss is right. | By what do you divide the number of clipped tokens?":
        "损失是对的。|被裁剪的词元个数，你除以了什么？",
    "Without padding it agrees. | By how many tokens do you divide?":
        "没有填充时结果一致。|你除以的是多少个词元？",
    "Twice as many tokens would give twice your result. | Is it a sum or a mean?":
        "词元多一倍，你的结果就大一倍。|这里要的是和还是平均？",
    "Is it a mean over tokens or over responses? By how many do you divide?":
        "平均是按词元取的，还是按回答取的？你除以几？",
    "Rows of equal length agree. | Does a token of a short row weigh as much as one of a long row?":
        "各行等长时结果一致。|短行里的一个词元和长行里的一个词元，权重一样吗？",
    "Without padding it agrees. | You divide by the real tokens: are they alone in the sum?":
        "没有填充时结果一致。|你除以的是真实词元的个数：加进总和里的也只有它们吗？",
    "Without a count it agrees. | By what do you divide when a count is given?":
        "不给 count 时结果一致。|给了 count 时应该除以什么？",
    "It agrees where there are real tokens. | By how many do you divide where there are no real "
    "tokens?":
        "有真实词元时结果一致。|一个真实词元也没有时，你除以几？",
    "The values are right. | Where there is no real token, what does loss.backward() do with your "
    "0?":
        "数值是对的。|没有真实词元时，loss.backward() 会怎么处理你的 0？",
    "The values are right, and backward() works. | Where there is no real token, from what is "
    "your 0 computed: does its graph lead back to the inputs?":
        "数值是对的，backward() 也能运行。|没有真实词元时，你的 0 是由什么算出来的：它的计算图能回"
        "到输入吗？",
    "Inside the clip it agrees. | Pessimistic means that the larger of the two errors counts: "
    "which one do you take?":
        "在裁剪范围之内结果一致。|“悲观”的意思是两个误差中取较大的：你取的是哪一个？",
    "Value and gradient are exactly twice the expected ones. | Which factor belongs to a squared "
    "error here?":
        "数值和梯度都正好是正确值的两倍。|这里的平方误差前面有什么系数？",
    "Where are your clipped values, whatever the old ones are? What should be at most eps: a "
    "value or a change?":
        "不管旧的价值是多少，你裁剪后的价值落在哪里？不能超过 eps 的是什么：价值，还是价值的变化"
        "？",
    "Your clipped value is eps away from the new one. From which of the two may it be eps away?":
        "你裁剪后的价值离新值不超过 eps。应该是离哪一个不超过 eps？",
    "The policy's ratio is near 1, so its bounds are 1 - eps and 1 + eps. Is the value's change "
    "a ratio too?":
        "策略的比率在 1 附近，所以界是 1 - eps 和 1 + eps。价值的变化也是比率吗？",
    "What does your clipped term hold besides the change of the value?":
        "在你被裁剪的那一项里，除了价值的变化还有什么？",
    "Inside the clip it agrees. | When a value has jumped far in the wrong direction, what brings "
    "it back?":
        "在裁剪范围之内结果一致。|一个价值朝错误的方向跳得很远时，什么把它带回来？",
    "Inside the clip it agrees. | What keeps a value from gaining by a jump: is it bound to "
    "anything but the return?":
        "在裁剪范围之内结果一致。|靠什么让价值不能靠猛跳得利：除了回报，它还受什么约束？",
    "Inside the clip it agrees. | Do both errors count, or one of them?":
        "在裁剪范围之内结果一致。|两个误差都算，还是只算一个？",
    "It agrees on small logits. | In float32 softmax can be exactly 0: what is 0 times its "
    "logarithm?":
        "logits 小时结果一致。|在 float32 里 softmax 可以正好是 0：0 乘以它的对数是多少？",
    "It agrees on large probabilities. | What is added to a probability of a millionth, and how "
    "much larger does that make it?":
        "概率大时结果一致。|百万分之一的概率被加上了多少？它因此变大了多少倍？",
    "The value is right everywhere, and the gradient is NaN where a probability is 0. | Does "
    "torch.where keep a NaN out of the backward pass?":
        "数值处处都对，但概率为 0 的地方梯度是 NaN。|torch.where 能在反向传播时挡住 NaN 吗？",
    "Every value is exactly -1 times the expected one. | Can an entropy be negative?":
        "每个数都正好是正确值的 -1 倍。|熵可能是负的吗？",
    "Every value is the expected one divided by V. | What is the entropy of four equally likely "
    "tokens?":
        "每个数都是正确值除以 V。|四个等可能的词元，熵是多少？",
    "Every value is 1.4427 times the expected one. | What is the base of your logarithm?":
        "每个数都是正确值的 1.4427 倍。|你的对数以什么为底？",
    "Add 1 to all logits: the probabilities stay, and your result changes. | What is a "
    "log-probability besides the logit?":
        "给所有 logits 加 1：概率不变，你的结果却变了。|对数概率里除了 logit 还有什么？",
    "Where all tokens are equally likely it agrees. | Which tokens belong to the expectation?":
        "所有词元等可能时结果一致。|求期望要算上哪些词元？",
    "The value is right. | If the entropy is added to a loss as a bonus, what does it change?":
        "数值是对的。|如果把它作为熵奖励加进损失，它能改变什么？",
    "The KL is above its target: the policy is too far away. Should the penalty fall then, as "
    "yours does?":
        "KL 高于目标：策略离得太远了。这时惩罚该像你的那样下降吗？",
    "Near the target it agrees. | By how much may one strange batch change the coefficient?":
        "在目标附近结果一致。|一个反常的批次，最多能让系数变多少？",
    "Above the target it agrees. | How far down may the error go?":
        "高于目标时结果一致。|误差向下最多到多少？",
    "Below the target it agrees. | How far up may the error go?":
        "低于目标时结果一致。|误差向上最多到多少？",
    "The change is right in direction and too fast. | What are batch_size and horizon for?":
        "变化的方向对，但太快了。|batch_size 和 horizon 是做什么用的？",
    "The change is too slow. | After a horizon of responses, not of steps, the error counts in "
    "full: how many responses had the step?":
        "变化太慢了。|经过 horizon 个回答（不是步）之后，误差才完全起作用：这一步有多少个回答？",
    "A longer horizon should make the change slower. What does it do in yours?":
        "horizon 越长，变化应该越慢。在你的版本里呢？",
    "Is an error of 1 large when the target is 6, and when it is 0.01? Against what is it "
    "measured?":
        "目标是 6 时，误差 1 算大吗？目标是 0.01 时呢？误差是相对于什么来衡量的？",
    "On the target it agrees. | How large is your error when the KL is 0: relative to what?":
        "正好在目标上时结果一致。|KL 为 0 时，你的误差有多大：它是相对于什么的？",
    "With a long horizon and near the target it agrees. | What lies between -0.2 and 0.2: the "
    "error, or the error times batch_size / horizon?":
        "horizon 很长、又在目标附近时结果一致。|限制在 -0.2 和 0.2 之间的是什么：误差，还是误差乘"
        "以 batch_size / horizon？",
    "At a coefficient of 1 it agrees. | Should 0.01 and 10 change by the same amount, or by the "
    "same share?":
        "系数为 1 时结果一致。|0.01 和 10 应该改变同样的量，还是同样的比例？",
    "On the target your result is 0. | What should the coefficient be when the KL is on its "
    "target?":
        "正好在目标上时，你的结果是 0。|KL 正好在目标上时，系数应该是多少？",
    "For small changes it agrees. | Is the change 1 + x or exp(x)?":
        "变化小时结果一致。|变化是 1 + x，还是 exp(x)？",
    "That is the rule of the PPO paper (section 4). What does Ziegler's do with a KL that is "
    "10% off?":
        "那是 PPO 论文（第 4 节）的规则。KL 偏离 10% 时，Ziegler 的规则怎么做？",
    "A response that holds the sum among other things is paid. | What would a policy write that "
    "is paid for every number in it?":
        "回答里除了和还有别的内容，也得到了奖励。|如果里面每个数都有机会得奖，策略会写出什么？",
    "You read the first number. What of the words and numbers around it?":
        "你读的是第一个数。它前后的词和数呢？",
    "You read the last number. What of the words and numbers before it?":
        "你读的是最后一个数。它前面的词和数呢？",
    "Python's int() reads more than plain digits: what does it make of \"042\", of \"+42\", of "
    '"4_2"?':
        'Python 的 int() 能读的不只是普通数字：它把 "042"、"+42"、"4_2" 读成什么？',
    'Digits alone are not enough: which numbers does int() make of "063" and of "42" in another '
    "script, and is each the answer in plain digits?":
        '只有数字还不够：int() 把 "063"、把用别的文字写的 "42" 读成什么？它们都是用普通数字写'
        "的答案吗？",
    "Python's float() reads more than plain digits: what does it make of \"42.0\", of \"+42\"?":
        'Python 的 float() 能读的不只是普通数字：它把 "42.0"、"+42" 读成什么？',
    'Should " 42" be worth less than "42"?': '" 42" 应该比 "42" 得分低吗？',
    'Should "42." be worth less than "42"?': '"42." 应该比 "42" 得分低吗？',
    'Once the full stop of "42 ." is gone, what stands at the end?':
        '"42 ." 去掉句点以后，末尾是什么？',
    "How many full stops may a response end with, and how many do you take away?":
        "回答末尾最多可以有几个句点？你去掉了几个？",
    'Is "4.2" the number 42?': '"4.2" 是数 42 吗？',
    'Is "4 2" the number 42?': '"4 2" 是数 42 吗？',
    "What does your search give for a prompt that is no sum, and what do you do with it?":
        "提示词不是加法题时，你的查找返回什么？你又拿它做了什么？",
    'A sum of numbers agrees. | What stands around the plus of "salt + pepper"?':
        '数的加法一致。|"salt + pepper" 的加号两边是什么？',
    'A sum has " + " between its numbers here, and your search takes more than that. What does '
    "the docstring say of other prompts?":
        '这里的加法题在两个数之间写作 " + "，你的查找接受了更多写法。关于其他提示词，docstring '
        "是怎么说的？",
    "Does every prompt with numbers in it ask for their sum?":
        "凡是提示词里有数，就是在问它们的和吗？",
    "Sums of small numbers agree. | How many digits of each number does your pattern take?":
        "小的数相加时结果一致。|你的模式（pattern）从每个数里取几位？",
    "Groups with some spread agree. | In a group without spread the mean may be off in its last "
    "digit, and eps is small: what makes the advantage exactly 0?":
        "组内奖励有差异时结果一致。|没有差异时，均值的最后一位可能不准，而 eps 很小：靠什么让优势"
        "正好是 0？",
    "Groups with some spread agree. | Is the standard deviation of equal rewards exactly 0 as a "
    "computer computes it, for every size of a group? Which question about the rewards can be "
    "answered without rounding?":
        "组内奖励有差异时结果一致。|奖励全相同时，计算机算出的标准差对任何组大小都正好是 0 吗？关"
        "于奖励的哪个问题，不经舍入就能回答？",
    "Groups of a large spread agree, and so do those without any. | Should rewards that differ a "
    "little count as equal?":
        "差异大的组一致，没有差异的组也一致。|差一点点的奖励应该算相等吗？",
    "Larger groups with some spread agree. | In a group without spread the mean may be off in its "
    "last digit. And how many numbers does an unbiased standard deviation need?":
        "有差异的大组一致。|没有差异的组里，均值的最后一位可能不准。另外，无偏标准差至少需要几个数"
        "？",
    "A large spread agrees, a spread about as small as eps does not. | Is eps added to the "
    "standard deviation or to the variance?":
        "差异大时结果一致，差异与 eps 差不多大时不一致。|eps 是加在标准差上，还是加在方差上？",
    "The advantages of a prompt's own responses do not add up to 0. | Which responses stand next "
    "to one another in the rewards?":
        "同一个提示词的几个回答，优势相加不等于 0。|在奖励里，哪些回答是挨在一起的？",
    "As many groups as responses in one agree. | Which of the two numbers of view(...) says how "
    "long a row is, and how long must a row be to hold one prompt's responses?":
        "组数与每组的回答数相同时结果一致。|view(...) 的两个数里，哪个说的是一行有多长？一行要多长"
        "，才正好装下一个提示词的回答？",
    "One group alone agrees. | With whom is a response compared?":
        "只有一组时结果一致。|一个回答应该和谁比？",
    "One group alone agrees, and so does scale none. | Over which rewards is the standard "
    "deviation taken?":
        "只有一组时结果一致，scale 为 none 时也一致。|标准差是在哪些奖励上取的？",
    "Each advantage is sqrt(G / (G - 1)) times the expected one. | By what is the sum of squares "
    "divided in your standard deviation?":
        "每个优势都是正确值的 sqrt(G / (G - 1)) 倍。|在你的标准差里，平方和除以了什么？",
    "A large spread nearly agrees. | What keeps a small spread from blowing its advantages up?":
        "差异大时几乎一致。|靠什么不让很小的差异把优势放得巨大？",
    "With rewards around 5 all your advantages are positive. | Better than what must a response "
    "be?":
        "奖励在 5 附近时，你的优势全是正的。|一个回答要比什么更好？",
    "Without a division you are off by the factor G / (G - 1): that is RLOO's baseline. | Does "
    "GRPO leave a response out of its own mean?":
        "不做除法时，你的结果差了 G / (G - 1) 倍：那是 RLOO 的基线。|GRPO 取均值时会把回答自己排除"
        "在外吗？",
    "Scale none agrees. | What does scale std ask for?":
        "scale 为 none 时结果一致。|scale 为 std 时要求什么？",
    "Scale std agrees. | What does Dr. GRPO leave out?":
        "scale 为 std 时结果一致。|Dr. GRPO 去掉了什么？",
    "Twice the rewards should give the same advantages. What do yours do?":
        "奖励加倍，优势应该不变。你的呢？",
    "The numbers are right. | Which shape went in, and which should come out?":
        "数值是对的。|进去的是什么形状，出来的应该是什么形状？",
    "Every flag is the opposite of the expected one. | Does True mean to keep a group or to drop "
    "it?":
        "每个标志都和正确的相反。|True 表示保留一组，还是丢弃一组？",
    "A group of equal rewards, none of them 0, is kept. | What are the advantages of a group of "
    "equal rewards?":
        "一组奖励全相同、但都不是 0，被你保留了。|奖励全相同的一组，优势是多少？",
    "Is a mean of 0 the same as no spread? Think of the rewards 1 and -1.":
        "均值为 0 就是没有差异吗？想想奖励 1 和 -1。",
    "A group in which all are right is kept, and one of different negative rewards is not. | What "
    "does a group teach by?":
        "全部答对的一组被你保留了，奖励都为负但各不相同的一组却没有。|一组靠什么来教模型？",
    "Rewards of 0 and 1 agree. | What if the rewards are scores of a reward model?":
        "奖励只有 0 和 1 时结果一致。|如果奖励是奖励模型的得分呢？",
    "Rewards of 0 and 1 agree. | What if the rewards are scores of a reward model, and none of "
    "them is 1?":
        "奖励只有 0 和 1 时结果一致。|如果奖励是奖励模型的得分，而且没有一个等于 1 呢？",
    "Groups of equal rewards are kept, but only for some values and sizes. | Is the mean of equal "
    "numbers that number, to its last digit?":
        "奖励全相同的组有的被保留了，但只在某些数值和组大小时。|相同的数取均值，到最后一位都还等于"
        "那个数吗？",
    "In float32 it agrees, because Python computes with more digits than that. In float64 it does "
    "not. | What is (0.1 + 0.1 + 0.1) / 3?":
        "float32 时结果一致，因为 Python 计算时的位数更多。float64 时不一致。|(0.1 + 0.1 + 0.1) / "
        "3 是多少？",
    "One group of equal rewards is kept. | Is the standard deviation that torch computes for "
    "equal rewards exactly 0?":
        "有一组奖励全相同，却被保留了。|奖励全相同时，torch 算出的标准差正好是 0 吗？",
    "A group with a tiny spread is dropped. | At which spread does the definition begin to call "
    "rewards equal?":
        "差异极小的一组被你丢弃了。|按定义，差异小到多少才算相等？",
    "Groups that begin and end with the same reward are dropped. | What of the rewards between "
    "the first and the last?":
        "首尾奖励相同的组被你丢弃了。|首尾之间的奖励呢？",
    "One group alone agrees. | Which responses stand next to one another in the rewards?":
        "只有一组时结果一致。|在奖励里，哪些回答是挨在一起的？",
    "Is there a flag for every group, or for every response?": "标志是每组一个，还是每个回答一个？",
    "At ratio 1 the value is right and the gradient of the clipped loss is negated. | Which way "
    "round is the ratio?":
        "比率为 1 时数值是对的，裁剪损失的梯度却反了号。|比率是谁除以谁？",
    "The paper maximises an objective; an optimiser minimises a loss. What is the sign of the "
    "advantage's term in yours?":
        "论文是最大化目标，优化器是最小化损失。在你的版本里，优势那一项是什么符号？",
    "Where the policy has moved, your ratio is still 1, and no gradient flows through it. | Which "
    "policy sampled?":
        "策略已经变了，你的比率却还是 1，也没有梯度流过它。|采样的是哪个策略？",
    "Close to the clip range, not quite on it: are the two edges bounds of the ratio or of its "
    "logarithm?":
        "在裁剪边界附近、但不正好在边界上的地方：两个边界是比率的界，还是比率的对数的界？",
    "At log-probs of -200 it is not a number. | How large is exp(-200) in float32, and which "
    "difference could you take before exp?":
        "对数概率为 -200 时结果是 NaN。|exp(-200) 在 float32 里有多大？取 exp 之前可以先求哪个差？",
    "Without KL it agrees. | Is being far from the reference a gain or a loss?":
        "没有 KL 时结果一致。|离参考模型远，是得利还是损失？",
    "Close to the reference it nearly agrees. | Is d the reference minus the policy, or the other "
    "way round?":
        "离参考模型近时几乎一致。|d 是参考减策略，还是反过来？",
    "Without KL it agrees. | What pulls the policy back to the reference?":
        "没有 KL 时结果一致。|什么把策略拉回参考模型？",
    "Where kl_coef is 0 or 1 it agrees. | How much does the KL count?":
        "kl_coef 为 0 或 1 时结果一致。|KL 占多大的权重？",
    "Without KL it agrees. | May the estimate of equation 4 be negative?":
        "没有 KL 时结果一致。|公式 4 的估计可以是负的吗？",
    "Close to the reference it nearly agrees. | Is the estimate of equation 4 symmetric?":
        "离参考模型近时几乎一致。|公式 4 的估计是对称的吗？",
    "What is your KL where policy and reference agree?": "策略与参考模型相同时，你的 KL 是多少？",
    "The numbers are right. | How does the KL term move the policy?":
        "数值是对的。|KL 那一项怎样推动策略？",
    "Which of the other two log-probabilities belong to the policy that sampled the tokens?":
        "另外两个对数概率中，哪一个属于采样出这些词元的策略？",
    "With a reference it agrees. | What is there to compute where kl_coef is 0?":
        "有参考模型时结果一致。|kl_coef 为 0 时还有什么要算的？",
    "One response alone agrees. | Along which of the two dimensions does (B,) broadcast against "
    "(B, T)?":
        "只有一个回答时结果一致。|(B,) 与 (B, T) 广播时，对齐的是哪一维？",
    "Where both ranges are 0.2 it agrees. | Which bound is clip_high for?":
        "两个范围都是 0.2 时结果一致。|clip_high 管的是哪个界？",
    "Where both ranges are 0.2 it agrees. | Which bound is clip_low for?":
        "两个范围都是 0.2 时结果一致。|clip_low 管的是哪个界？",
    "Where both ranges are 0.2 it agrees. | Which of the two bounds is above 1?":
        "两个范围都是 0.2 时结果一致。|两个界中哪一个在 1 以上？",
    "Does a ratio of 1 lie between your bounds?": "比率 1 在你的两个界之间吗？",
    "Which shape should come out? Who does the averaging?": "应该输出什么形状？取平均由谁来做？",
    "Rows without padding agree. | What does the mask do in your sum?":
        "没有填充的行都对。|在你的求和里，掩码起了什么作用？",
    "In a sequence average, does each row weigh the same, or each token?":
        "在 sequence 平均里，是每一行的权重相同，还是每个词元的权重相同？",
    "In a token average, does a token of a short row weigh as much as one of a long row?":
        "在 token 平均里，短行里的一个词元和长行里的一个词元，权重一样吗？",
    "In a constant average, may the length of a response change the weight of its tokens?":
        "在 constant 平均里，回答的长度可以改变其中词元的权重吗？",
    "T is the longest response of this batch. Is that a constant of the training?":
        "T 是这一批里最长的回答的长度。它在整个训练中是常数吗？",
    "Twice the same rows should give the same constant average. What does yours do?":
        "同样的行重复一遍，constant 平均应该不变。你的呢？",
    "Without count it agrees. | When count is given, is max_length in it already?":
        "不给 count 时结果一致。|给了 count 时，max_length 已经包含在里面了吗？",
    "Rows without padding agree. | By how many tokens do you divide a row's sum?":
        "没有填充的行都对。|一行的和，你除以了多少个词元？",
    "Rows without padding agree. | How many tokens are real?":
        "没有填充的行都对。|有多少个词元是真实的？",
    "Without empty rows it agrees. | Does a row without tokens count as a row?":
        "没有空行时结果一致。|没有词元的一行也算一行吗？",
    "Without empty rows it agrees. | How many tokens does an empty row have, and what is 0 / 0?":
        "没有空行时结果一致。|空行有几个词元？0 / 0 是多少？",
    "With a token in every row it agrees. | By what do you divide where there is no token at all?":
        "每行都有词元时结果一致。|一个词元也没有时，你除以几？",
    "The values are right. | Where there is no token, what does loss.backward() do with your 0?":
        "数值是对的。|没有词元时，loss.backward() 会怎么处理你的 0？",
    "The values are right, and backward() works. | Where there is no token, from what is your 0 "
    "computed: does its graph lead back to the token losses?":
        "数值是对的，backward() 也能运行。|没有词元时，你的 0 是由什么算出来的：它的计算图能回到词"
        "元的损失吗？",
    "Without count it agrees. | Who calls this function with a part of a batch, and by what must "
    "the part be divided?":
        "不给 count 时结果一致。|谁会拿一批的一部分来调用这个函数？这一部分应该除以什么？",
    "Without count it agrees. | When count is given, do you still divide by a number of your own?":
        "不给 count 时结果一致。|给了 count 时，你还除以自己的一个数吗？",
    "For k = 1 it agrees. | Can the same sample be drawn twice?":
        "k = 1 时结果一致。|同一个样本会被抽到两次吗？",
    "For k = 1 it agrees. | What does k change?": "k = 1 时结果一致。|k 改变了什么？",
    "For k = 1 it agrees. | May chances be added up when several samples can be right at once?":
        "k = 1 时结果一致。|几个样本可以同时答对，这时概率可以直接相加吗？",
    "For k = 1 it agrees. | Must all of the k samples be right, or one?":
        "k = 1 时结果一致。|k 个样本必须全都对，还是一个对就行？",
    "Your value and the expected one add up to 1. | Which of two opposite events is pass@k?":
        "你的结果和正确值相加等于 1。|两个对立的事件中，哪一个是 pass@k？",
    "With one right sample it agrees. | At least one right sample, or exactly one?":
        "只有一个样本对时结果一致。|要的是至少一个，还是恰好一个？",
    "Where the chance is 0 or 1 it agrees. | Does one right sample among n make sure that k of "
    "them have it?":
        "概率为 0 或 1 时结果一致。|n 个样本里有一个对，就能保证抽出的 k 个里一定有它吗？",
    "With few samples it agrees. | How many digits has C(2000, 1000), and what is the largest "
    "float?":
        "样本少时结果一致。|C(2000, 1000) 有多少位？最大的浮点数是多少？",
    "What is C(n, k) for k > n, and which error was promised there?":
        "k > n 时 C(n, k) 是多少？约定此时抛出哪种错误？",
    "Can pass@5 be estimated from 4 samples? What should the function do?":
        "只有 4 个样本，能估计 pass@5 吗？这个函数应该怎么做？",
}

FORMULAS = {  # --hint 2
    "### Instruction:, the instruction, an empty line; then, where there is an input, ### "
    "Input:, the input, an empty line; then ### Response: and the end of its line":
        "“### Instruction:”、指令、空行；有输入时再写“### Input:”、输入、空行；最后是“### "
        "Response:”并换行",
    "input_ids = prompt, response, end token; labels = the same with -100 in place of the "
    "prompt's tokens; both without what comes after the first max_length":
        "input_ids = 提示词、回答、结束符；labels 与它相同，只是提示词的词元换成 -100；两者都只保"
        "留前 max_length 个",
    "to the right of each row, up to the longest one: pad_id in input_ids, 0 in attention_mask "
    "(1 on the row itself), -100 in labels":
        "在每一行右侧补到最长一行的长度：input_ids 补 pad_id，attention_mask 补 0（行本身是 1），"
        "labels 补 -100",
    "-log softmax(logits at position t)[label at position t + 1], summed over the labels that "
    "are not -100 and divided by count":
        "-log softmax(位置 t 的 logits)[位置 t + 1 的标签]，对不是 -100 的标签求和，再除以 count",
    "exp(sum of loss x tokens over the batches / sum of tokens)":
        "exp(各批“损失 × 词元数”之和 / 词元总数)",
    "the largest position t with attention_mask[b, t] = 1, for every row b":
        "对每一行 b，使 attention_mask[b, t] = 1 的最大位置 t",
    "token_scores[b, the position of row b's last real token]":
        "token_scores[b, 第 b 行最后一个真实词元的位置]",
    "P(chosen wins) = sigmoid(chosen - rejected)": "P(chosen 获胜) = sigmoid(chosen - rejected)",
    "-log sigmoid(chosen - rejected - margin), summed over the pairs and divided by count":
        "-log sigmoid(chosen - rejected - margin)，对各对求和，再除以 count",
    "the number of pairs with chosen > rejected / the number of pairs":
        "chosen > rejected 的有几对 / 一共有几对",
    "log softmax(z_t / temperature)[y_t] in float32, where z_t is the row of logits one "
    "position before the token y_t":
        "log softmax(z_t / temperature)[y_t]，用 float32 计算；z_t 是词元 y_t 前一个位置的那一行 "
        "logits",
    "mask_t = 1 if none of the tokens before t is an end token, else 0":
        "如果 t 之前的词元里没有结束符，mask_t = 1，否则为 0",
    "k1 = -log r; k2 = (log r)^2 / 2; k3 = (r - 1) - log r; with r = p_ref / p":
        "k1 = -log r；k2 = (log r)^2 / 2；k3 = (r - 1) - log r；其中 r = p_ref / p",
    "r_t = -beta KL_t on real tokens, plus the score on the last of them":
        "真实词元上 r_t = -beta KL_t，最后一个真实词元再加上得分",
    "delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}; returns = A + V":
        "delta_t = r_t + gamma V_{t+1} - V_t；A_t = delta_t + gamma lam A_{t+1}；returns = A + V",
    "(x - mean) / sqrt(var + eps), mean and unbiased var over the real entries; without "
    "shift_mean + mean; 0 off the mask, and everywhere when there are fewer than two":
        "(x - mean) / sqrt(var + eps)，均值和无偏方差在真实元素上取；shift_mean 为 False 时再加回"
        " mean；掩码之外为 0，真实元素不足两个时全部为 0",
    "max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)) with ratio = exp(new - old), summed over "
    "the real tokens and divided by count":
        "max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps))，其中 ratio = exp(new - old)，对真实词元"
        "求和，再除以 count",
    "1/2 max((V - R)^2, (clipped - R)^2) with clipped = old + clip(V - old, -eps, eps), summed "
    "over the real tokens and divided by count":
        "1/2 max((V - R)^2, (clipped - R)^2)，其中 clipped = old + clip(V - old, -eps, eps)，对真"
        "实词元求和，再除以 count",
    "H_t = -sum_v p_v log p_v with p = softmax(logits_t), summed over the real tokens and "
    "divided by count":
        "H_t = -sum_v p_v log p_v，其中 p = softmax(logits_t)，对真实词元求和，再除以 count",
    "beta (1 + error batch_size / horizon) with error = clip(observed_kl / target_kl - 1, -0.2, "
    "0.2)":
        "beta (1 + error batch_size / horizon)，其中 error = clip(observed_kl / target_kl - 1, "
        "-0.2, 0.2)",
    "1.0 if the response, without white space at its ends, then one final full stop, then white "
    "space again, is the sum in plain digits; else 0.0":
        "回答先去掉首尾空白，再去掉末尾的一个句点，再去掉空白；剩下的正好是用普通数字写的和，就是"
        " 1.0，否则是 0.0",
    "\"std\": A = (r - mean) / (std + eps), \"none\": A = r - mean, with each group's own mean and "
    "unbiased std; exactly 0 where all rewards of a group are equal":
        '"std"：A = (r - mean) / (std + eps)；"none"：A = r - mean；均值和无偏标准差都在各组'
        "之内取；一组的奖励全相同时，A 正好是 0",
    "a group is kept if and only if its largest reward differs from its smallest":
        "当且仅当一组里最大的奖励不等于最小的奖励时，保留这一组",
    "max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)) + kl_coef (exp(d) - d - 1) with "
    "ratio = exp(new - old) and d = ref - new":
        "max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)) + kl_coef (exp(d) - d - 1)，"
        "其中 ratio = exp(new - old)，d = ref - new",
    '"sequence": sum over rows of (sum of the row / its tokens) / count, count: B; "token": sum '
    '/ count, count: the tokens; "constant": sum / count, count: B max_length':
        '"sequence"：各行（行内之和 / 行的词元数）之和 / count，count 为 B；"token"：总和 / '
        'count，count 为词元数；"constant"：总和 / count，count 为 B max_length',
    "1 - C(n - c, k) / C(n, k), with n samples of which c are right":
        "1 - C(n - c, k) / C(n, k)，n 个样本中有 c 个正确",
}

PHRASES = {  # of the cases' notes
    "no input": "没有输入",
    "an input": "有输入",
    "an input that is given and empty": "给了输入，但是空的",
    "lines and spaces": "换行和空格",
    "which are kept": "都要保留",
    "a space at the end of the instruction": "指令末尾有一个空格",
    "an input of one space": "输入是一个空格",
    "an input of one new line": "输入是一个换行",
    "the input 0": "输入是 0",
    "braces and percent signs": "花括号和百分号",
    "the word {input} twice": "出现两次 {input}",
    "Chinese": "中文",
    "room for everything": "长度足够",
    "just enough room": "长度刚好",
    "no room for the end token": "放不下结束符",
    "no room for the response": "放不下回答",
    "no room for the whole prompt": "放不下整个提示词",
    "an empty response": "回答为空",
    "an empty prompt": "提示词为空",
    "a response made of the prompt's tokens": "回答由提示词的词元组成",
    "the end token inside prompt and response": "提示词和回答里都有结束符",
    "a response that ends with the end token": "回答以结束符结尾",
    "a response that is nothing but an end token": "回答只有一个结束符",
    "the token 0 in prompt and response": "提示词和回答里都有词元 0",
    "the end token has the id 0": "结束符的编号是 0",
    "random tokens": "随机词元",
    "cut": "被截断",
    "one row": "一行",
    "a row of three tokens and one of one": "一行三个词元、一行一个词元",
    "worked by hand": "可手算",
    "rows of equal length": "各行等长",
    "as many rows as tokens": "行数等于词元数",
    "the longest row is in the middle": "最长的一行在中间",
    "the pad token is the end token": "填充符就是结束符",
    "pad token 0 is the end token": "填充符是结束符，编号为 0",
    "the pad token's id inside the rows": "行里有编号等于填充符的词元",
    "one row of three tokens": "一行三个词元",
    "every token labelled": "每个词元都有标签",
    "prompts": "有提示词",
    "padding": "有填充",
    "a row with one label and one with none": "一行有一个标签、一行没有标签",
    "as many rows as tokens as words": "行数、词元数、词表大小都相等",
    "a token that was all but impossible": "一个几乎不可能的词元",
    "logits of size 200": "logits 大到 200",
    "no label at all": "没有任何标签",
    "a label at the first token alone": "只有第一个词元有标签",
    "which has no logits before it": "它前面没有 logits",
    "count given": "给了 count",
    "count given as a tensor": "count 是张量",
    "no label": "没有标签",
    "and count given": "给了 count",
    "bfloat16 logits": "bfloat16 的 logits",
    "one label": "一个标签",
    "large": "很大",
    "one batch": "一批",
    "losses ln 2 over three tokens and ln 32 over one": "三个词元损失为 ln 2、一个词元损失为 ln 32",
    "no doubt at all": "毫无疑问",
    "a long easy batch and a short hard one": "一批又长又容易、一批又短又难",
    "batches of different sizes": "各批大小不同",
    "batches of equal size": "各批大小相同",
    "one of the batches has no token": "有一批没有词元",
    "large losses": "损失很大",
    "padded on the right": "右侧填充",
    "padded on the left": "左侧填充",
    "one token": "一个词元",
    "no padding": "没有填充",
    "one row of one token": "一行只有一个词元",
    "padded on both sides": "两侧填充",
    "one pair": "一对",
    "better": "有高",
    "equal and worse by ln 3": "有平、有低（相差 ln 3）",
    "random scores": "随机得分",
    "scores around 50": "得分在 50 附近",
    "scores around 200": "得分在 200 附近",
    "scores around -200": "得分在 -200 附近",
    "scores 400 apart": "得分相差 400",
    "better by ln 3": "被选中的高 ln 3",
    "a margin of ln 3": "margin 为 ln 3",
    "scores around 5": "得分在 5 附近",
    "a margin a pair": "每对一个 margin",
    "120 apart": "相差 120",
    "400 apart and a margin a pair": "相差 400、每对一个 margin",
    "a margin and count": "给了 margin 和 count",
    "one tie": "一个平局",
    "two right": "两对正确",
    "one wrong": "一对错误",
    "nothing but ties": "全是平局",
    "all wrong": "全错",
    "negative scores": "得分为负",
    "positive scores": "得分为正",
    "close ones": "彼此接近",
    "random scores and two ties": "随机得分和两个平局",
    "several rows": "多行",
    "one token a row": "每行一个词元",
    "temperature 0.7": "温度 0.7",
    "temperature 2": "温度 2",
    "the unlikeliest tokens": "最不可能的词元",
    "logits of size 200 at temperature 0.5": "logits 大到 200、温度 0.5",
    "logits in bfloat16": "bfloat16 的 logits",
    "no gradient": "不求梯度",
    "the end token is in the middle": "结束符在中间",
    "no end token": "没有结束符",
    "the end token is the first": "结束符在最前",
    "the end token is the last": "结束符在最后",
    "two end tokens with a word between": "两个结束符之间有一个词",
    "the second of two end tokens": "两种结束符中的第二种",
    "rows of all kinds": "各种各样的行",
    "either of two end tokens": "两种结束符之一",
    "random ids": "随机编号",
    "two end tokens": "两种结束符",
    "estimator left out": "没有给出估计量",
    "k1": "k1",
    "k2": "k2",
    "k3": "k3",
    "equal policies": "两个策略相同",
    "policies close together": "两个策略接近",
    "policies far apart": "两个策略相差很远",
    "tokens of hardly any probability": "概率极小的词元",
    "one row without padding": "一行、没有填充",
    "one row without any token": "一行、没有词元",
    "rows that end early": "各行提前结束",
    "noise at the padding": "填充处是噪声",
    "a row without any token": "有一行没有词元",
    "and a row without any": "还有一行没有词元",
    "kl_coef 0": "kl_coef 为 0",
    "kl_coef 2": "kl_coef 为 2",
    "rows of the same length": "各行等长",
    "lambda 0": "lambda 为 0",
    "one row that ends after two of four tokens": "一行四个词元、在第二个之后结束",
    "gamma 1": "gamma 为 1",
    "lambda 0.95": "lambda 为 0.95",
    "one row whose inputs carry a graph": "一行、输入带着计算图",
    "rows whose inputs carry a graph": "多行、输入带着计算图",
    "shift_mean False": "shift_mean 为 False",
    "eps 5": "eps 为 5",
    "two real entries": "两个真实元素",
    "one real entry in all": "总共一个真实元素",
    "no real entry": "没有真实元素",
    "no spread at all": "完全没有差异",
    "around 10000": "在 10000 附近",
    "around -20000": "在 -20000 附近",
    "a row without any entry": "有一行没有元素",
    "in two rows of one": "分在两行、每行一个",
    "eps 0.5": "eps 为 0.5",
    "nearly no spread": "几乎没有差异",
    "two rows": "两行",
    "ratios 2 and 0.5 with advantages of both signs": "比率 2 和 0.5、优势有正有负",
    "ratio 1 everywhere": "比率处处为 1",
    "a token of hardly any probability": "一个概率极小的词元",
    "ratios far beyond the clip": "比率远远超出裁剪范围",
    "clip range 0.1": "裁剪范围 0.1",
    "one real token in all": "总共一个真实词元",
    "one row of one real token": "一行、一个真实词元",
    "no real token at all": "没有任何真实词元",
    "moves in both directions": "朝两个方向变化",
    "values that have not moved": "价值没有变化",
    "values far beyond the clip": "价值远远超出裁剪范围",
    "probabilities of 1/2": "概率为 1/2",
    "1/3 and 1/4": "1/3 和 1/4",
    "a sure policy and one that halts between two": "一个确定的策略、一个在两者之间犹豫的策略",
    "logits around 100": "logits 在 100 附近",
    "nineteen tokens of one in ten thousand": "十九个概率为万分之一的词元",
    "thirty-nine tokens of one in a million": "三十九个概率为百万分之一的词元",
    "equal logits in bfloat16": "bfloat16 的相等的 logits",
    "the KL is 10% above its target": "KL 比目标高 10%",
    "the KL is 10% below its target": "KL 比目标低 10%",
    "the KL is on its target": "KL 正好在目标上",
    "the KL is twice its target": "KL 是目标的两倍",
    "the KL is 0": "KL 为 0",
    "the estimate of the KL is negative": "KL 的估计为负",
    "a small target": "目标很小",
    "a batch as large as the horizon": "一批与 horizon 一样大",
    "a batch larger than the horizon": "一批比 horizon 还大",
    "a horizon of one response": "horizon 为一个回答",
    "random numbers": "随机数",
    "above the target": "高于目标",
    "below the target": "低于目标",
    "27 + 15": "27 + 15",
    "the sum": "正确的和",
    "one more than the sum": "比和大 1",
    "a full stop": "一个句点",
    "white space": "空白",
    "white space after the full stop": "句点后有空白",
    "white space before the full stop": "句点前有空白",
    "a full stop on the next line": "句点在下一行",
    "nothing": "什么也没有",
    "a full stop alone": "只有一个句点",
    "a sentence": "一个句子",
    "the whole sum": "整个算式",
    "two answers": "两个答案",
    "a digit in front": "前面多一位",
    "a digit behind": "后面多一位",
    "a leading zero": "前导零",
    "a sign": "带符号",
    "decimals": "带小数",
    "white space between the digits": "数字之间有空白",
    "a full stop between the digits": "数字之间有句点",
    "two full stops": "两个句点",
    "an ellipsis": "省略号",
    "a tab between the digits": "数字之间有制表符",
    "a full stop in front": "句点在前面",
    "an underscore": "下划线",
    "digits of another script": "别的文字的数字",
    "a last digit of another script": "最后一位是别的文字的数字",
    "numbers of one digit": "一位数",
    "nought and nought": "零加零",
    "numbers of three digits": "三位数",
    "a number of four digits": "四位数",
    "a prompt without numbers": "提示词里没有数",
    "and 0": "回答 0",
    "a prompt with two numbers and no sum": "提示词里有两个数、但不是加法",
    "a difference": "减法",
    "no white space around the plus": "加号两边没有空白",
    "white space on one side of the plus": "加号一边有空白",
    "a plus between words": "加号在词之间",
    "numbers in words": "用词写的数",
    "one group of three": "一组三个",
    "two groups": "两组",
    "scale none": "scale 为 none",
    "as many groups as responses in one": "组数等于每组的回答数",
    "three groups of five": "三组、每组五个",
    "around different means": "均值各不相同",
    "right and wrong answers": "有对有错的回答",
    "1 and 0": "奖励为 1 和 0",
    "groups of two": "两个一组",
    "a spread as small as eps": "差异与 eps 一样小",
    "a small spread": "差异小",
    "a small spread around 128": "差异小、在 128 附近",
    "groups without spread": "各组都没有差异",
    "every reward the same": "奖励全都相同",
    "a large group of equal rewards": "一个奖励全相同的大组",
    "groups without spread beside others": "没有差异的组与其他组混在一起",
    "groups of one": "一个一组",
    "all right": "全对",
    "some right": "部分对",
    "rewards around 5": "奖励在 5 附近",
    "one group equal": "有一组全相同",
    "negative rewards": "奖励为负",
    "groups that begin and end with the same reward": "首尾奖励相同的组",
    "rewards 1 and -1": "奖励为 1 和 -1",
    "groups of mean 0": "均值为 0 的组",
    "a tiny spread": "差异极小",
    "groups of six": "六个一组",
    "equal rewards": "奖励全相同",
    "one group of equal rewards": "一组、奖励全相同",
    "one large group of equal rewards": "一个大组、奖励全相同",
    "equal rewards in float64": "float64、奖励全相同",
    "groups of 3": "三个一组",
    "groups of 6": "六个一组",
    "groups of 7": "七个一组",
    "one response": "一个回答",
    "no KL": "没有 KL",
    "no reference": "没有参考模型",
    "as many responses as tokens": "回答数等于词元数",
    "five responses of three tokens": "五个回答、每个三个词元",
    "with a reference": "有参考模型",
    "clip_low 0.3": "clip_low 为 0.3",
    "clip_high 0.1": "clip_high 为 0.1",
    "log-probs around -200": "对数概率在 -200 附近",
    "sequence": "sequence",
    "one row of two tokens out of three": "一行三个词元中有两个真实",
    "token": "token",
    "constant": "constant",
    "rows of different lengths": "各行长短不一",
    "rows without a token": "有的行没有词元",
    "padding on the left": "左侧填充",
    "count a tensor": "count 是张量",
    "one token in all": "总共一个词元",
    "one row without a token": "一行、没有词元",
    "no token at all": "一个词元也没有",
    '"median"': '"median"',
    "an average that does not exist": "不存在的平均方式",
    '"batch"': '"batch"',
    '"tokens"': '"tokens"',
    "one of two right": "两个中对一个",
    "k = 1": "k = 1",
    "one of four right": "四个中对一个",
    "k = 2": "k = 2",
    "three of five right": "五个中对三个",
    "none right": "全都不对",
    "k is the number of samples": "k 等于样本数",
    "one right": "对一个",
    "too few wrong ones to fill k": "错的太少、填不满 k 个",
    "dozens of samples": "几十个样本",
    "k = 8": "k = 8",
    "k = 3": "k = 3",
    "two thousand samples": "两千个样本",
    "k = 1000": "k = 1000",
    "thousands of samples": "几千个样本",
    "more than there are": "比样本还多",
    "made smaller": "已缩小",
} | {f"right sum {n}": f"正确的和，例 {n}" for n in range(1, 18)}

TEXTS = {  # of the report, of hints.py, of the worker and of the board
    "work the case through by hand, as the docstring's example does.":
        "照 docstring 里例子的做法，把这个情形用手算一遍。",
    'what comes out, and of which kind, stands in the docstring under "Shapes".':
        "输出什么、是哪种类型，写在 docstring 的“Shapes”下面。",
    "does every way through your function end with a return?":
        "你的函数的每条路径都以 return 结束吗？",
    "call it with these inputs yourself, and look at what goes into the line that fails.":
        "用这些输入自己调用一次，看看出错的那一行里传进了什么。",
    'which inputs are an error, and which error, stands in the docstring under "Shapes".':
        "哪些输入算错误、该抛出哪种错误，写在 docstring 的“Shapes”下面。",
    "which of your steps cuts the graph: detach(), item(), torch.tensor(...), no_grad()?":
        "你的哪一步切断了计算图：detach()、item()、torch.tensor(...)，还是 no_grad()？",
    "no gradient may flow back through this: detach() it, or what it is computed from.":
        "这里不应该有梯度流回去：对它，或者对算出它的东西用 detach()。",
    "the values are right, their gradient is not: what on the way detaches, clips or chooses?":
        "数值是对的，梯度不对：路上是什么切断了、裁剪了或者做了选择？",
    "which of your lines writes into an input: x[...] =, x +=, a method with _ at its end, or "
    "append() to a list?":
        "你的哪一行写进了输入：x[...] =、x +=、名字以 _ 结尾的方法，还是列表的 append()？",
    "the result": "结果",
    'the output "{name}"': "输出“{name}”",
    "{where} has the wrong values": "{where}的数值不对",
    "{where} is not finite": "{where}不是有限数",
    "{where} should be of type {kind}": "{where}的类型应该是 {kind}",
    "a tensor of shape {shape}": "形状为 {shape} 的张量",
    "do the single functions pass? See pytest -k {file}": "单个函数都通过了吗？见 pytest -k {file}",
    "   (more help: --hint {next})": "   （更多提示：--hint {next}）",
    "differs at index {index}: yours {yours}, expected {expected}":
        "下标 {index} 处不同：你的 {yours}，应为 {expected}",
    "{where} has the wrong shape": "{where}的形状不对",
    "{where} has the wrong dtype": "{where}的 dtype 不对",
    "it returned {value}": "它返回了 {value}",
    "it raises an exception": "它抛出了异常",
    "its graph does not begin at the inputs": "它的计算图没有回到输入",
    "it changed its inputs: work on copies": "它改动了输入：请在副本上操作",
    "the gradient with respect to {name}": "对 {name} 的梯度",
    "{some}; {one}": "{some}；{one}",
    "and {number} more": "另有 {number} 个",
    'again: pytest -k "{file} and {name}"': '再来一次：pytest -k "{file} and {name}"',
    "formula: {formula}": "公式：{formula}",
    "place: {place}": "位置：{place}",
    "again: pytest -k {name}{more}": "再来一次：pytest -k {name}{more}",
    " ({notes})": "（{notes}）",
    "right so far: {right} of {total} cases{few}": "目前对了 {total} 个情形中的 {right} 个{few}",
    "hint: {question}": "提示：{question}",
    "{where} should have other keys": "{where}应该有别的键",
    '{where}["{key}"]': '{where}["{key}"] ',
    "it should raise a {kind}": "它应该抛出 {kind}",
    "no gradient flows through {name}": "没有梯度流过{name}",
    "{name} still carries a graph (requires_grad), and should not":
        "{name}还带着计算图（requires_grad），不应该带",
    "it raised NotImplementedError": "它抛出了 NotImplementedError",
    "{file}.py does not load: {error}": "{file}.py 无法加载：{error}",
    "it calls {name}, which is still a stub: fill that in first":
        "它调用了还没写的 {name}：请先填那个空",
    "{name} is still a stub": "{name} 还没写",
    "in step {number} of a training run, {what}": "在训练的第 {number} 步，{what}",
    "the training run stopped: {error}": "训练停下了：{error}",
    "the training run has not all of its steps": "训练没有走完所有的步",
    "{where} has the wrong length": "{where}的长度不对",
    "{where}, entry {i},": "{where}的第 {i} 项",
    "case": "情形",
    "yours": "你的",
    "expected": "应为",
    "you printed": "你打印的",
    "{where} has the wrong value": "{where}的值不对",
    "{all} have {what}, and no other case has": "{all}都符合：{what}；其余情形都不符合",
    "{all} have {what}": "{all}都符合：{what}",
    "the gradient is": "梯度",
    "yours is": "你的结果",
    "{where} not finite. Where does your code take the log or the root of 0 or of something "
    "negative, or divide by 0?":
        "{where}不是有限数。你的代码在哪里对 0 或负数取了对数或平方根，或者除以了 0？",
    "several real tokens": "有多个真实词元",
    "a row without a real token": "有一行没有真实词元",
    "a real token in each row": "每行都有真实词元",
    "no padding on the left": "左侧没有填充",
    "padding on the right": "右侧有填充",
    "no padding on the right": "右侧没有填充",
    "no hint": "没有提示",
    "the hints failed: {kind}: {error}": "生成提示时出错：{kind}：{error}",
    "both failing cases": "两个出错的情形",
    "all {number} failing cases": "全部 {number} 个出错的情形",
    "{gap} in every case": "每个情形都差 {gap}",
    "another one in each case": "各个情形不同",
    "{name} is off by one constant in all its entries ({much}). Which term is missing, or there "
    "twice?":
        "{name}的所有元素都差同一个常数（{much}）。哪一项漏了，或者多加了一次？",
    "{name} is {factor} times the expected one in every case. Which factor is that?":
        "在每个情形里，{name}都是正确值的 {factor} 倍。这个倍数是什么？",
    "{name} is the expected one times {ratio}, in every case. By what do you divide, and by "
    "what does the formula?":
        "在每个情形里，{name}都是正确值乘以 {ratio}。你除以了什么？公式除以的又是什么？",
    "{name} is the expected one times a constant, another one in each case ({factors}). By what "
    "do you divide?":
        "{name}是正确值乘以一个常数，各个情形不同（{factors}）。你除以了什么？",
    "the number of real tokens": "真实词元数",
    "the number of labels": "标签数",
    "it is the expected one, in the opposite order. What turns it round?":
        "内容是对的，顺序反了。用什么把它倒过来？",
    "it differs in white space alone: count the spaces and line breaks, with repr(...), those "
    "at the end too.":
        "只差在空白上：用 repr(...) 数一数空格和换行，末尾的也要数。",
    "it is the expected one without its end. What is added last?":
        "是正确的结果缺了末尾。最后应该加上什么？",
    "it begins with all that is expected, and then goes on. What is added there, and where "
    "should it stop?":
        "开头与正确的结果完全一样，但后面还有。多加了什么？应该在哪里停？",
    "it is the expected one without its beginning. What comes first?":
        "是正确的结果缺了开头。最前面应该是什么？",
    "it holds the right entries in another order. Which comes first?":
        "各项都对，顺序不对。哪一项应该在最前面？",
    "{where} no number where no token counts. What is 0 / 0, and by what do you divide there?":
        "没有任何词元计入时，{where}是 NaN。0 / 0 是多少？你在那里除以了什么？",
    "{where} no number where there is one number to take a deviation of. What is divided by n - "
    "1 when n is 1?":
        "只有一个数可以求标准差时，{where}是 NaN。n 为 1 时，除以 n - 1 会怎样？",
    "{where} no number where a row has no token. What is 0 / 0, and by what do you divide that "
    "row?":
        "有一行没有词元时，{where}是 NaN。0 / 0 是多少？那一行你除以了什么？",
    "{where} not finite where the inputs are as large as {largest}: in float32 exp(89) is inf "
    "and exp(-104) is 0. Which of your steps takes exp of something large, the log of 0, or inf "
    "/ inf, and which function does it in one go?":
        "输入大到 {largest} 时，{where}不是有限数：在 float32 里 exp(89) 是 inf，exp(-104) 是 0。"
        "你的哪一步对很大的数取了 exp、对 0 取了对数，或者算了 inf / inf？哪个函数可以一步完成？",
    "a row without a label": "有一行没有标签",
    "a label in every row": "每行都有标签",
    "tokens without a label": "有的词元没有标签",
    "a label at the first token": "第一个词元有标签",
    "no label at the first token": "第一个词元没有标签",
    "a group without spread": "有一组没有差异",
    "spread in every group": "每组都有差异",
    "one group": "只有一组",
    "several groups": "有多组",
    "no real token": "没有真实词元",
    "{all} have {what}. What does your code do there, and what would you do by hand?":
        "{all}都符合：{what}。你的代码在那里做了什么？手算的话会怎么做？",
    "{outputs} is right. What goes into the other one alone?":
        "{outputs}是对的。只有另一个输出才用到的是什么？",
    "{outputs} are right. What goes into the other one alone?":
        "{outputs}都是对的。只有另一个输出才用到的是什么？",
    "{a} and {b}": "{a}和{b}",
    "yours does not change when {name} does: no gradient reaches it. Where in the formula does "
    "it stand, and where in your code?":
        "{name} 变了，你的结果却不变：没有梯度到达它。它在公式的什么地方？在你的代码里呢？",
    "{name} is exactly -1 times the expected one in every case. Which sign does the formula "
    "have, and where does yours lose it?":
        "在每个情形里，{name}都正好是正确值的 -1 倍。公式里是什么符号？你在哪里把它弄丢了？",
    "{a} / {b}": "{a} / {b}",
    "no {name}": "没有 {name}",
    "{name} given": "给了 {name}",
    "{name} given as a tensor": "{name} 是张量",
    "{name} given as a number": "{name} 是一个数",
    "white space at an end of {name}": "{name} 的首尾有空白",
    "no white space at the ends of {name}": "{name} 的首尾没有空白",
    "{name} empty": "{name} 为空",
    "several entries in {name}": "{name} 里有多项",
    "one entry in {name}": "{name} 里只有一项",
    "yours does not change when {name} does, in {number} cases where it should. Where in the "
    "formula does it stand, and where in your code?":
        "在 {number} 个本该变化的情形里，{name} 变了，你的结果却不变。它在公式的什么地方？在你的"
        "代码里呢？",
    "in common": "共同点",
    "gradients": "梯度",
    "in {part} of the {all} failing cases the values are right, and their gradient is not":
        "{all} 个出错的情形中有 {part} 个数值是对的，梯度不对",
    "right": "对的",
    "{outputs}, in every case": "{outputs}，在每个情形里都对",
    "Two mistakes, it seems. The one in this case: {question}":
        "看来有两个错误。这个情形里的是：{question}",
    "Two mistakes, it seems, and this case has both. One: {question}":
        "看来有两个错误，这个情形里两个都有。一个：{question}",
    "Two mistakes, it seems. One: {question}": "看来有两个错误。一个：{question}",
    "Two mistakes, it seems, and this case has both. One: where does the result become {times} "
    "what it should be?":
        "看来有两个错误，这个情形里两个都有。一个：结果在哪里变成了应有值的{times}？",
    "Three mistakes, it seems. The one in this case: {question}":
        "看来有三个错误。这个情形里的是：{question}",
    "More than one mistake, it seems. The one in this case: {question}":
        "看来不止一个错误。这个情形里的是：{question}",
    'More than one mistake, it seems. The one in the output "{name}": {question}':
        "看来不止一个错误。输出“{name}”里的是：{question}",
    "the other: {question}": "另一个：{question}",
    "another: {question}": "还有一个：{question}",
    "not explained by it: {rest}": "它解释不了：{rest}",
    "not explained by these: {rest}": "它们解释不了：{rest}",
    "the gradient, in {part} of the {all} failing cases":
        "{all} 个出错的情形中有 {part} 个的梯度",
    "the case {notes}": "情形{notes}",
    "the cases {notes}": "情形{notes}",
    "what else is wrong": "其余的错误",
    "-1 times": " -1 倍",
    "twice": "两倍",
    "half of": "一半",
    "{name} of dtype {dtype}": "{name} 的 dtype 是 {dtype}",
    "{name} with one row": "{name} 只有一行",
    "{name} with several rows": "{name} 有多行",
    "large numbers in {name}": "{name} 里有很大的数",
    "no large numbers in {name}": "{name} 里没有很大的数",
    "as many rows as columns": "行数等于列数",
    "{name} = {value}": "{name} = {value}",
    "a negative {name}": "{name} 为负",
    "no negative {name}": "{name} 不为负",
    "another output": "另一个输出",
    "exit code {number}": "退出码 {number}",
    "no answer within {seconds} seconds, of which it computed for {computed}: does it sleep, or "
    "wait for something?":
        "等了 {seconds} 秒没有答复，其中只计算了 {computed} 秒：它在睡眠，还是在等待什么？",
    "no answer within {seconds} seconds of computing: does it loop for ever?":
        "计算了 {seconds} 秒没有答复：是死循环吗？",
    "the process ended in the call ({code})": "调用时进程结束了（{code}）",
    "no answer that a worker gives": "工作进程不会给出的答复",
    "what came from the process is {problem}": "进程送回的是：{problem}",
    "Watching the exercises: save a file to check again, Ctrl-C to end.":
        "正在守候练习文件：保存文件就会再检查一次，按 Ctrl-C 结束。",
    "Next: mend {name} in exercises/{file}.py, then pytest -k {name}":
        "下一步：修改 exercises/{file}.py 里的 {name}，再运行 pytest -k {name}",
    "Next: fill in {name} in exercises/{file}.py, then pytest -k {name}":
        "下一步：填写 exercises/{file}.py 里的 {name}，再运行 pytest -k {name}",
    "Next: train with them: python {lesson} --exercise":
        "下一步：用它们训练：python {lesson} --exercise",
    "exercises: + done, x wrong, . todo": "练习：+ 完成，x 有错，. 待做",
    "{done} of {number} done.": "{number} 个中完成了 {done} 个。",
    "{name} is the expected one, in the opposite order. In which order do you walk, in which do "
    "you collect, and what turns the list round in the end?":
        "{name}的内容是对的，顺序反了。你按什么顺序循环，按什么顺序收集，最后用什么把列表倒过来？",
    "{name} has each row's real entries in the opposite order. Which end of a row do you begin "
    "at?":
        "{name}里每行的真实元素顺序都反了。你从一行的哪一头开始？",
    "{name} is the expected one with rows and columns exchanged. Which dimension is which?":
        "{name}的行和列互换了。哪一维是哪一维？",
    "the numbers of {name} are right, their shape is not. Which of your steps adds a dimension, "
    "or removes one too many?":
        "{name}的数值都对，形状不对。你的哪一步多加了一维，或者多去掉了一维？",
    "the entries of {name} add up to 1, and should not. Over which dimension is your softmax or "
    "your mean taken?":
        "{name}的元素相加等于 1，不应该这样。你的 softmax 或平均是沿哪一维取的？",
    "all entries of {name} are the same number, and should not be. Over what do you take a sum "
    "or a mean that should be taken for each?":
        "{name}的所有元素都是同一个数，不应该这样。哪个和或平均应该逐个求，你却合在一起求了？",
    "{name} is the expected one, one place too late. Which entry belongs to which: that of its "
    "own place, or its neighbour's?":
        "{name}的内容是对的，只是晚了一位。哪个元素对应哪个：是它自己的位置，还是邻居的？",
    "{name} is the expected one, one place too early. Which entry belongs to which: that of its "
    "own place, or its neighbour's?":
        "{name}的内容是对的，只是早了一位。哪个元素对应哪个：是它自己的位置，还是邻居的？",
    "{name} is right on all real tokens, and wrong at the padding. What should stand there?":
        "{name}在所有真实词元上都对，在填充处不对。填充处应该是什么？",
    "{name} is right but for each row's last real token. What comes after that one?":
        "{name}只有每行最后一个真实词元不对。它后面是什么？",
    "{name} is right but for its first row or entry. What does your code do differently there?":
        "{name}只有第一行（或第一个元素）不对。你的代码在那里有什么不同？",
    "{name} is right but for its last row or entry. What does your code do differently there?":
        "{name}只有最后一行（或最后一个元素）不对。你的代码在那里有什么不同？",
    "{name} is right but for its first column. What does your code do differently there?":
        "{name}只有第一列不对。你的代码在那里有什么不同？",
    "{name} is right but for its last column. What does your code do differently there?":
        "{name}只有最后一列不对。你的代码在那里有什么不同？",
    '"{name}"': "“{name}”",
}

FINISHED = {  # what comes as a finished text: from the worker, which knows no language; places
    "there is no {file}.py": "没有文件 {file}.py",
    "{file}.py has no {name}": "{file}.py 里没有 {name}",
    'section "The maths" of {lesson}, function {name}': "{lesson} 的“The maths”一节，函数 {name}",
}
QUESTIONS = {said(english): said(chinese) for english, chinese in HINTS.items()
             for said in (whole, question_of)}
SENTENCES = QUESTIONS | FORMULAS | PHRASES | TEXTS | FINISHED


def of_a_note(note):
    """Phrase by phrase, or None where one is not known."""
    phrases = note.split(", ")
    known = all(phrase in PHRASES for phrase in phrases)
    return "，".join(PHRASES[phrase] for phrase in phrases) if known else None


def of_the_finished(text):
    """By the template that it was made from, or None."""
    for template, translation in FINISHED.items():
        pattern = PLACEHOLDER.sub(r"(?P<\1>[\\w.]+)", template)
        found = re.fullmatch(pattern, text)
        if found:
            return PLACEHOLDER.sub(lambda name: found[name[1]], translation)
    return None
