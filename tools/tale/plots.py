"""The plots of tale's stories, as templates (see grammar.py), each with the questions that it can answer.

A plot is the middle of a story: a wish or a problem, a try, a twist, a resolution. Opening and ending are drawn apart
(stories.py). Every plot names the hero, the friend and the thing, so that it can serve any request.

Slots: hero, kind, he, him, his; friend, fkind, fhe, fhim, fhis; thing ("lamp"), cthing ("red lamp"), place ("in a quiet
forest"), placenoun, spot ("under the bed"), food, weather, daytime.
"""

from __future__ import annotations

from typing import NamedTuple


class Plot(NamedTuple):
    """One middle part.

    Attributes:
        name: what the plot is about, used in thoughts ("about a lost thing").
        text: the template.
        questions: (question, answer) templates that hold for every expansion of `text`.
        short: the same plot in three sentences, for requests that want it short.
    """

    name: str
    text: str
    questions: tuple[tuple[str, str], ...]
    short: str


PLOTS: tuple[Plot, ...] = (
    Plot(
        "a lost thing",
        '[One|On a] {weather} {daytime}, {hero} [noticed|saw] that {his} {cthing} was gone. ["Oh no!" cried {hero}. "Where is my {thing}?"|'
        "{He} felt very sad, for {he} loved that {thing} more than anything else.] {He} looked [behind the house and under every bush|"
        "in every corner and behind every tree], but the {thing} was not there. [Then {he} sat down and cried a little.|{His} heart grew heavy.] "
        '{Friend} the {fkind} [came along|heard {him}] and asked, "Why are you so sad?" "I have lost my {cthing}," said {hero}. '
        '"[Do not worry|Dry your tears]," said {friend}. "[We will look for it together|Four eyes see more than two]." '
        "[They searched the whole day|They searched and searched], and at last {friend} [laughed and pointed|called out with joy]. "
        "The {cthing} lay {spot}! [{Hero} jumped for joy|{Hero} danced in a circle] and [hugged {friend}|thanked {friend} again and again]. "
        "[From then on, {hero} took good care of the {thing}.|{Hero} never lost the {thing} again.]",
        (
            ("What did {hero} lose?", "{Hero} lost {his} {cthing}."),
            ("Where [was|did they find] the {thing}?", "The {cthing} was {spot}."),
            ("Who found the {thing}?", "{Friend} found the {cthing}."),
            ("Why was {hero} sad?", "{Hero} was sad because {his} {cthing} was gone."),
        ),
        "One {weather} {daytime}, {hero} lost {his} {cthing}. {Friend} the {fkind} helped {him} and found it {spot}.",
    ),
    Plot(
        "learning to {skill}",
        "More than anything, {hero} wanted to learn to {skill}. [Every {daytime} {he} tried|{He} tried it on a {weather} {daytime}], but it [always went wrong|"
        "did not work at all]. [The others laughed|Some birds giggled], and {hero} [hid behind a tree|went home with {his} head down]. "
        'There {he} met {friend}, {a_fkind} who [carried|owned] {a_cthing}. "I could not {skill} either when I was young," said {friend}. '
        '"[Practise a little every day|Go slowly and do not give up], and I will show you how." [So they practised together|So they met every day], '
        "and {friend} [kept time with|waved] the {cthing}. [First it went badly, then a little better|Each day it went a little better]. "
        "[And one {weather} {daytime}|And after seven days], {hero} could {skill} [better than anyone|as if {he} had never done anything else]. "
        '[Everybody clapped|The whole {placenoun} cheered]. "[You did it|I knew you could]!" said {friend}, and gave {him} the {cthing} as a present.',
        (
            ("What did {hero} want to learn?", "{Hero} wanted to learn to {skill}."),
            ("Who taught {hero}?", "{Friend} the {fkind} taught {hero} to {skill}."),
            ("What [present did {hero} get|did {friend} give {hero}]?", "{Friend} gave {hero} the {cthing}."),
        ),
        "{Hero} wanted to learn to {skill}, but it always went wrong. {Friend} the {fkind} practised with {him} every day, and soon {hero} could {skill} "
        "better than anyone. As a present {he} got {a_cthing}.",
    ),
    Plot(
        "being afraid of {fear}",
        "But {hero} had a secret: {he} was afraid of {fear}. [Whenever it came|Each time], {he} [hid under {his} blanket|shook from head to toe]. "
        '[One|On a] {weather} {daytime}, {hero} told {his} friend {friend}, {a_fkind}. {Friend} did not laugh. "[Everyone is afraid of something|'
        'Even the bravest are afraid sometimes]," {fhe} said. "Take this {cthing}. [When you hold it, think of me|Hold it tight, and you will not be alone]." '
        "[That same night|Soon after], it happened: {hero} had to face {fear}. {His} knees trembled, but {he} held the {cthing} and [took one step, then another|"
        "counted slowly to ten]. [And look|And then], nothing bad happened at all! {Hero} [began to laugh|felt a warm glow inside]. "
        '"I am not afraid any more!" {he} called. [{Friend} was very proud of {him}|{Friend} smiled and said, "I am proud of you"].',
        (
            ("What was {hero} afraid of?", "{Hero} was afraid of {fear}."),
            ("What did {friend} give {hero}?", "{Friend} gave {hero} {a_cthing}."),
            ("How did {friend} help {hero}?", "{Friend} gave {hero} {a_cthing} to hold."),
        ),
        "{He} was afraid of {fear}. {His} friend {friend}, {a_fkind}, gave {him} {a_cthing} to hold. With it in {his} hand, {hero} was not afraid any more.",
    ),
    Plot(
        "finding the way home",
        "[One|On a] {weather} {daytime}, {hero} went [for a long walk|out to look for {food}]. {He} walked [further and further|over hills and through fields], until "
        '{he} [did not know the way back|had lost the path]. [It grew dark|The sun went down], and every tree looked the same. "Which way is home?" {hero} [whispered|wondered]. '
        'Then {he} saw [a small light|something bright] {spot}. It was {friend} the {fkind}, who held {a_cthing}. "Are you lost?" asked {friend}. '
        '"Yes," said {hero}, "[and I am cold and hungry|and I want to go home]." {Friend} [shared {fhis} {food}|gave {him} some {food}] and said, '
        '"Follow the {cthing}. [I know every path here|I know the way well]." [Step by step they went|So they walked side by side], and {hero} was not afraid. '
        "[When the moon stood high|Before midnight], they [saw {hero}'s door|reached {hero}'s home]. \"[Thank you, dear friend|You saved me],\" said {hero}. "
        '"[Now I know the way to you, too|Next time I will stay on the path]."',
        (
            ("What happened to {hero}?", "{Hero} lost the way home."),
            ("Who showed {hero} the way [home|back]?", "{Friend} the {fkind} showed {hero} the way home."),
            ("What did {friend} hold?", "{Friend} held {a_cthing}."),
            ("What did they eat?", "They ate {food}."),
        ),
        "One {weather} {daytime}, {hero} lost the way home. {Friend} the {fkind} came with {a_cthing} and showed {him} the path. They shared some {food}, and before midnight {hero} was home.",
    ),
    Plot(
        "a rescue",
        '[One|On a] {weather} {daytime}, {hero} heard a cry: "Help! Help!" {He} ran as fast as {he} could and found {friend} the {fkind}, who was stuck {spot}. '
        '"[I cannot get out|I am stuck]!" cried {friend}. {Hero} pulled and pulled, but {friend} did not move. [{He} thought hard|{He} scratched {his} head]. '
        'Then {he} remembered {his} {cthing}. "[Hold on to it|Take this end]," {he} called, "and count to three!" One, two, three: with a loud plop {friend} was free! '
        '[They tumbled over each other|Both fell into the grass] and laughed. "[You are a true hero|How can I ever thank you]!" said {friend}. '
        '"[Friends help each other|It was nothing]," said {hero}. [In the evening|Later], they ate {food} together and told everybody [about the {cthing}|what had happened].',
        (
            ("Who was stuck?", "{Friend} the {fkind} was stuck {spot}."),
            ("Where was {friend} stuck?", "{Friend} was stuck {spot}."),
            ("How did {hero} [help|rescue|save] {friend}?", "{Hero} used {his} {cthing} to pull {friend} out."),
            ("What did they eat?", "They ate {food}."),
        ),
        "One {weather} {daytime}, {friend} the {fkind} was stuck {spot}. {Hero} used {his} {cthing} to pull {fhim} out. In the evening they ate {food} together and laughed.",
    ),
    Plot(
        "sharing in a hard winter",
        "That year the winter was long, and the snow lay deep. {Hero} had only [a little|one basket of] {food} left. [One|On a] {weather} {daytime}, there was a knock at the door. "
        'Outside stood {friend}, {a_fkind}, cold and thin. "[Please, I have not eaten for three days|I am so hungry]," said {friend}. {Hero} looked at the {food}. '
        '[It was hardly enough for one|If {he} shared it, there would be little left]. But then {he} opened the door wide. "[Come in and sit by the fire|What is enough for one is enough for two]," {he} said. '
        "So they shared the {food}, and it tasted better than ever. [When spring came|When the snow had melted], {friend} came back with {a_cthing}. "
        '"[This is for you|You shared with me], because you [have a good heart|let me in]," said {friend}. And {hero} kept the {cthing} [all {his} life|in the best place of the house].',
        (
            ("Who knocked at the door?", "{Friend} the {fkind} knocked at the door."),
            ("What did {hero} share?", "{Hero} shared {his} {food}."),
            ("What did {friend} bring?", "{Friend} brought {a_cthing}."),
            ("Why was {friend} [hungry|cold]?", "The winter was long, and {friend} had nothing to eat."),
        ),
        "In a hard winter {hero} had only a little {food} left. When {friend} the {fkind} knocked at the door, {he} shared it. In spring {friend} came back with {a_cthing} as a present.",
    ),
    Plot(
        "a quarrel",
        '{Hero} had a good friend, {friend} the {fkind}. [One|On a] {weather} {daytime}, they found {a_cthing} {spot}. "It is mine!" said {hero}. "No, it is mine!" said {friend}. '
        "[They pulled and shouted|Each pulled at one end], until they [did not speak to each other any more|both went home in anger]. {Hero} took the {cthing} along. "
        "[But it was no fun to play alone|But alone, the {thing} was only a {thing}]. {He} [looked out of the window|could not sleep] and thought of {friend}. "
        '[The next day|In the morning], {hero} went to {friend}\'s house. "I am sorry," {he} said. "[A friend is worth more than any {thing}|I would rather have you than the {thing}]." '
        '"I am sorry, too," said {friend}. [They hugged|They shook hands], and from then on the {cthing} belonged to both of them.',
        (
            ("What did they find?", "They found {a_cthing}."),
            ("Where did they find the {thing}?", "They found the {cthing} {spot}."),
            ("Why did they quarrel?", "They quarrelled because both wanted the {cthing}."),
            ("Who said sorry first?", "{Hero} said sorry first."),
        ),
        "One {weather} {daytime}, {hero} and {his} friend {friend}, {a_fkind}, found {a_cthing} {spot}, and both wanted it. They quarrelled and went home. The next day {hero} said sorry, and the {thing} belonged to both of them.",
    ),
    Plot(
        "a birthday present",
        '{Friend} the {fkind} had a birthday, and {hero} wanted to give {fhim} {a_cthing}. But [{he} had no money|the shop was closed], not even one coin. "What shall I do?" thought {hero}. '
        '[{He} sat down and thought for a long time|{He} walked up and down]. [One|On a] {weather} {daytime}, {he} [had an idea|jumped up]: "I will make one myself!" '
        "{Hero} [worked day and night|cut and glued and painted], and when the {thing} was ready it was [a little crooked|not quite straight]. "
        '[{Hero} was ashamed|"It is not pretty," {he} said quietly]. But {friend} [beamed|clapped {fhis} hands]. "It is the best present of all," {fhe} said, "because you made it for me." '
        "Then there was {food} for everyone, and they [sang and danced|played] until late in the night.",
        (
            ("Whose birthday was it?", "It was {friend}'s birthday."),
            ("What present did {hero} [make|give {friend}]?", "{Hero} made {a_cthing} for {friend}."),
            ("What did they eat at the [party|birthday]?", "They ate {food}."),
            ("Why did {friend} like the present?", "{Friend} liked it because {hero} made it for {fhim}."),
        ),
        "It was the birthday of {friend} the {fkind}, but {hero} had no money for a present. So {he} made {a_cthing} with {his} own hands. {Friend} said it was the best present of all.",
    ),
    Plot(
        "a race",
        "[One|On a] {weather} {daytime}, there was a great race, and the prize was {a_cthing}. {Hero} [had trained for weeks|wanted to win more than anything]. "
        "[Ready, steady, go|One, two, three]! Off they ran, and {hero} was [far ahead|the first of all]. But suddenly {he} saw {friend} the {fkind}, who had fallen and lay {spot}. "
        '"[My foot hurts|I cannot get up]," [said|cried] {friend}. {Hero} looked at the finish. [It was so near|Only a few more steps]! But {he} [turned round|stopped] and helped {friend} up. '
        "[Slowly they walked on, side by side|Arm in arm they went on], and they came in last. [Then something wonderful happened|But then everybody stood up and cheered]: the judge gave the {cthing} to {hero}. "
        '"[Winning is good, but helping is better|The best runner is the one with the biggest heart]," {friend} said.',
        (
            ("What was the prize?", "The prize was {a_cthing}."),
            ("Who had fallen?", "{Friend} the {fkind} had fallen."),
            ("Why did {hero} stop?", "{Hero} stopped to help {friend}."),
            ("Who got the prize?", "{Hero} got the {cthing}."),
        ),
        "One {weather} {daytime}, {hero} ran in a race for {a_cthing}. Just before the finish {he} stopped to help {friend} the {fkind}, who had fallen. They came in last, but {hero} got the prize.",
    ),
    Plot(
        "a strange noise",
        '[One|On a] {weather} {daytime}, {hero} heard a strange noise. [Tap, tap, tap|Boom, boom, boom], it went. "[Is it a monster|Who is there]?" {hero} whispered. '
        "{He} took {his} {cthing} and [crept closer on the tips of {his} toes|went to look, very slowly]. It came from somewhere {spot}. [{His} heart beat loudly|{He} held {his} breath]. "
        '{He} lifted the {cthing} and [shouted|called], "Come out!" And who came out? It was only {friend}, {a_fkind}, who was [cracking nuts|dancing in wooden shoes]! '
        '"[Did I frighten you|Oh, you gave me a fright]?" asked {friend}. [Both had to laugh so much that they could not stop|They laughed until their bellies hurt]. '
        '"[Stay and eat with me|Let us be friends]," said {hero}, and they ate {food} together. Since that day, {hero} [smiles when {he} hears a strange noise|knows that not every noise is a monster].',
        (
            ("What did {hero} hear?", "{Hero} heard a strange noise."),
            ("Who made the noise?", "{Friend} the {fkind} made the noise."),
            ("What did {hero} take along?", "{Hero} took {his} {cthing} along."),
            ("What did they eat?", "They ate {food}."),
        ),
        "One {weather} {daytime}, {hero} heard a strange noise. {He} took {his} {cthing} and went to look. It was only {friend}, {a_fkind}, and soon they ate {food} together.",
    ),
    Plot(
        "a wish",
        '[One|On a] {weather} {daytime}, {hero} found {a_cthing} {spot}. [When {he} touched it|When {he} rubbed it with {his} sleeve], the {thing} began to [glow|hum], and a soft voice said, "You have one wish." '
        '[{Hero} could hardly believe it|{Hero}\'s eyes grew wide]. "I could wish for [gold|a castle]!" {he} thought. "[Or for a mountain of {food}|Or for all the {food} in the world]!" '
        'But then {he} thought of {friend} the {fkind}, who [lay ill in bed|had been ill for many weeks]. "I wish," said {hero} slowly, "that {friend} may be well again." '
        "[The {thing} shone once and went dark|There was a flash, and all was quiet]. {Hero} ran to {friend}'s house. The door flew open, and {friend} [ran out|jumped out], healthy and happy. "
        '"[That was the best wish of all|You gave away your wish for me]," said {friend}, and [hugged {him} for a long time|had tears of joy in {fhis} eyes].',
        (
            ("What did {hero} find?", "{Hero} found {a_cthing}."),
            ("Where did {hero} find the {thing}?", "{Hero} found it {spot}."),
            ("What did {hero} wish for?", "{Hero} wished that {friend} may be well again."),
            ("Who was ill?", "{Friend} the {fkind} was ill."),
        ),
        "One {weather} {daytime}, {hero} found {a_cthing} {spot} that could grant one wish. {Hero} wished that {his} friend {friend}, {a_fkind}, may be well again. And so it was.",
    ),
    Plot(
        "building something",
        '{Hero} wanted to build a {building}. [Everyone said it could not be done|"You are too small for that," said the others]. [One|On a] {weather} {daytime}, {he} began all the same. '
        "{He} [carried wood and stones|sawed and hammered], but in the night the wind blew, and in the morning everything had fallen down. [{Hero} wanted to give up|{Hero} sighed]. "
        'Then {friend} the {fkind} came by with {a_cthing}. "[Two can do more than one|Let me help you]," said {friend}. "And my {thing} will be useful." '
        "[So they worked together for many days|Together they worked until the stars came out]. {Friend} [held the boards|brought the wood], and {hero} [drove in the nails|tied the knots]. "
        "At last the {building} was ready, and it [stood as firm as a rock|was the finest far and wide]. They hung the {cthing} on it, [so that everyone could see it|as a sign of their friendship].",
        (
            ("What did {hero} build?", "{Hero} built a {building}."),
            ("Who helped {hero}?", "{Friend} the {fkind} helped {hero}."),
            ("Why did it fall down?", "It fell down because the wind blew in the night."),
            ("What did {friend} bring?", "{Friend} brought {a_cthing}."),
        ),
        "{Hero} wanted to build a {building}, but the wind blew it down. {Friend} the {fkind} came with {a_cthing} and helped {him}. Together they built it again, and it stood as firm as a rock.",
    ),
    Plot(
        "a message",
        '[One|On a] {weather} {daytime}, the old [king|mayor] gave {hero} {a_cthing}. "Bring it to {friend} the {fkind} before the sun sets," he said. "[It is very important|Do not open it and do not lose it]." '
        "{Hero} set off at once. {He} [crossed a cold stream|climbed a steep hill] and [walked through tall grass|passed three dark caves]. In the middle of the way {he} met a stranger. "
        '"[Give me the {thing}|I will carry it for you], and I will give you {food}," said the stranger. {Hero} was hungry, but {he} shook {his} head. "[A promise is a promise|I gave my word]," {he} said and went on. '
        '[Just before sunset|As the sun touched the hills], {hero} found {friend} {spot}. {Friend} [took the {cthing} and smiled|was overjoyed]. "[You can be trusted|You kept your word]," said {friend}. '
        '"Stay for dinner!" And there was more {food} than {hero} could eat.',
        (
            ("What did {hero} carry?", "{Hero} carried {a_cthing}."),
            ("Who was the {thing} for?", "The {cthing} was for {friend} the {fkind}."),
            ("Where did {hero} find {friend}?", "{Hero} found {friend} {spot}."),
            ("What did the stranger offer?", "The stranger offered {food}."),
        ),
        "One {weather} {daytime}, {hero} had to bring {a_cthing} to {friend} the {fkind}. A stranger offered {food} for it, but {hero} kept {his} promise. Before sunset {he} found {friend} {spot}.",
    ),
    Plot(
        "a dry garden",
        '{Hero} had a garden full of flowers. But that summer no rain fell, and the flowers let their heads hang. [One|On a] {weather} {daytime}, {hero} said, "[I must find water|Without water they will die]." '
        "{He} took {his} {cthing} and [walked and walked|asked everyone on the way]. At last {he} came to {friend}, {a_fkind} who lived by a spring. "
        '"[The water is deep down|The path is steep]," said {friend}, "but I know a way." [Together they dug a long ditch|Together they carried the water home, drop by drop], and the {cthing} was a great help. '
        "[In the evening|After three days], the water reached the garden. The flowers drank and lifted their heads, one by one. {Hero} [picked the most beautiful one|tied a bunch of flowers] and gave it to {friend}. "
        '"[Without you, there would be no garden|Half of this garden is yours]," said {hero}.',
        (
            ("Why did {hero} look for water?", "{Hero} looked for water because the flowers were dry."),
            ("Who lived by the spring?", "{Friend} the {fkind} lived by the spring."),
            ("What did {hero} take along?", "{Hero} took {his} {cthing} along."),
        ),
        "No rain fell, and the flowers in {hero}'s garden were dry. {He} took {his} {cthing} and went to {friend}, {a_fkind} who lived by a spring. Together they brought water, and the flowers lifted their heads.",
    ),
    Plot(
        "a new neighbour",
        '[One|On a] {weather} {daytime}, a new neighbour moved in next door: {friend} the {fkind}. {Friend} was shy and [never came out|always looked at the ground]. ["{Friend} is strange," the others said|Nobody played with {fhim}]. '
        'But {hero} thought, "[Perhaps {friend} is only lonely|Perhaps nobody has said hello yet]." So {he} baked some {baked}, tied a ribbon round it and put {his} {cthing} on top. Then {he} knocked at the door. '
        '[For a long time nothing happened|It was very quiet inside]. At last the door opened a little. "Is that for me?" asked {friend}. "Yes," said {hero}. "[Welcome|I am {hero}, and I live next door]." '
        "{Friend} [smiled for the first time|turned red with joy]. They [ate {baked} and talked|played with the {cthing}] until [the lamps were lit|the stars came out]. [Soon the others came as well|And it turned out that {friend} knew the best games of all].",
        (
            ("Who [moved in next door|was the new neighbour]?", "{Friend} the {fkind} moved in next door."),
            ("What did {hero} bake?", "{Hero} baked {baked}."),
            ("What did {hero} put on top?", "{Hero} put {his} {cthing} on top."),
            ("Why did {friend} not come out?", "{Friend} was shy."),
        ),
        "{Friend} the {fkind} moved in next door, and {fhe} was very shy. {Hero} baked some {baked}, put {his} {cthing} on top and knocked at the door. Soon they were the best of friends.",
    ),
    Plot(
        "a broken thing",
        "{Friend} the {fkind} owned {a_cthing} and loved it dearly. [One|On a] {weather} {daytime}, {hero} played with it in secret. [Crash|Oh dear]! The {thing} fell down and broke. "
        '{Hero} [was frightened|turned pale] and hid the pieces {spot}. In the evening {friend} asked, "Who has seen my {thing}?" {Hero} [said nothing|looked away]. '
        "But that night {he} could not sleep. [The lie lay on {his} heart like a stone|{He} turned from one side to the other]. [Early in the morning|At sunrise], {hero} went to {friend}. "
        '"It was me," {he} said. "I broke your {cthing}, and I am sorry." [{Friend} was silent for a moment|{Friend} took a deep breath]. "[It was brave to tell the truth|I am glad that you told me]," {fhe} said. '
        '"A {thing} can be mended." So they took some glue and mended the {cthing} together, [and {hero} felt as light as a feather|and it held for many years].',
        (
            ("What did {hero} break?", "{Hero} broke {friend}'s {cthing}."),
            ("Where did {hero} hide the pieces?", "{Hero} hid the pieces {spot}."),
            ("Who owned the {thing}?", "{Friend} the {fkind} owned the {cthing}."),
            ("Why could {hero} not sleep?", "{Hero} could not sleep because {he} had not told the truth."),
        ),
        "{Hero} broke the {cthing} of {his} friend {friend}, {a_fkind}, and hid the pieces {spot}. That night {he} could not sleep. In the morning {he} told the truth, and together they mended it.",
    ),
    Plot(
        "a treasure map",
        '[One|On a] {weather} {daytime}, {hero} found an old map. A red cross was on it, and under the cross stood: "Here lies the greatest treasure." {Hero} ran to {his} friend {friend}, {a_fkind}. "[Come along|Let us go and find it]!" {he} called. '
        "They [packed some {food}|took {food} for the journey] and walked [for two days|over hills and rivers]. [At night they told each other stories|When it rained, they hid under one coat]. "
        'The map led them to a place {spot}. They dug and dug, until they found a box. In it lay no gold at all, only {a_cthing} and a note. "[The greatest treasure is the friend who came with you|Whoever finds this has a true friend]," it said. '
        '{Hero} looked at {friend}, and {friend} looked at {hero}. [Then they both laughed|Both smiled]. "The note is right," said {hero}.',
        (
            ("What did {hero} find?", "{Hero} found an old map."),
            ("What was in the box?", "{A_cthing} and a note were in the box."),
            ("Who came along?", "{Friend} the {fkind} came along."),
            ("Where was the treasure?", "The treasure was {spot}."),
        ),
        "{Hero} found an old map and went to look for the treasure with {his} friend {friend}, {a_fkind}. {Spot} they found a box with {a_cthing} and a note. It said that the greatest treasure is a true friend.",
    ),
    Plot(
        "a great storm",
        '[One|On a] {weather} {daytime}, black clouds came over the hills. "A storm is coming!" called {hero}. [The wind howled|Lightning flashed], and the roof of {friend}\'s house flew away. {Friend} was {a_fkind} who lived nearby. '
        '"[Where shall I go|My house is broken]?" cried {friend}. "Come to me!" {hero} shouted through the wind. They ran, and {friend} saved only one thing: {fhis} {cthing}. '
        "[Inside it was warm and dry|{Hero} lit a fire and made tea]. [All night the storm raged|The rain beat against the window], but they sat close together and ate {food}. "
        '[In the morning|When the sun rose], the sky was clear. {Hero} and all the neighbours came and built a new roof for {friend}. "[I lost a roof and found many friends|I will never forget this]," said {friend}, and {fhe} gave the {cthing} to {hero}.',
        (
            ("What flew away?", "The roof of {friend}'s house flew away."),
            ("What did {friend} save?", "{Friend} saved {fhis} {cthing}."),
            ("Where did {friend} go?", "{Friend} went to {hero}'s house."),
            ("What did they eat?", "They ate {food}."),
        ),
        "One {weather} {daytime}, a storm blew away the roof of {friend} the {fkind}, and {fhe} saved only {fhis} {cthing}. {Hero} let {fhim} in and shared {his} {food}. Then they built a new roof together.",
    ),
)

SKILLS = (
    "swim",
    "sing",
    "dance",
    "whistle",
    "fly a kite",
    "skate",
    "juggle",
    "read",
    "climb",
    "paint",
    "ride a bicycle",
    "bake",
    "play the drum",
    "count",
)
FEARS = ("the dark", "thunder", "deep water", "the night", "the wind", "loud noises", "high places", "being alone")
BUILDINGS = ("bridge", "boat", "tower", "treehouse", "raft", "hut", "flying machine", "windmill", "snow house", "wall")

OPENINGS = (
    "[Once upon a time, there was {a_adj} {kind} [called|named] {hero}. {He} lived {place}.|"
    "{Place_comma} there [once ]lived {a_adj} {kind} whose name was {hero}.|"
    "Once there was {a_kind} called {hero}, who lived {place}. {He} was {adj}, and everyone liked {him}.|"
    "Long ago, {a_adj} {kind} [called|named] {hero} lived {place}.]"
)

ENDINGS: dict[str, str] = {
    "": "[And they lived happily ever after.|From that day on, {hero} and {friend} were the best of friends.|And if they have not moved away, they still live {place} today.|"
    "{Hero} smiled, for it had been a wonderful day.|And so it was good. The end.]",
    "funny": "[And whenever {hero} and {friend} thought of it, they laughed until they fell over.|And {friend} laughed so loudly that even the {thing} seemed to giggle.]",
    "happy": "[And {hero} was the happiest {kind} in the whole world.|They were so happy that they danced all the way home.]",
    "sad": "[But one day {friend} had to go far away. {Hero} cried, and kept {friend} in {his} heart for ever.|Later {friend} moved away, and {hero} still thinks of {fhim} when it rains.]",
    "bedtime": "[Then {hero} yawned, closed {his} eyes and slept until the morning. Good night.|Then the moon rose, {hero} pulled up {his} blanket, and all was quiet. Sleep well.]",
    "scary": "[And still today, when the wind howls at night, {hero} listens and wonders.|But sometimes, at midnight, {hero} still hears soft steps at the door.]",
    "exciting": "[What an adventure that had been! And the next one was already waiting.|It was the greatest adventure of {hero}'s life.]",
}

MORALS = {
    "a lost thing": "Friends help each other look for what is lost.",
    "a rescue": "Friends help each other.",
    "a race": "Helping is better than winning.",
    "a quarrel": "A friend is worth more than any thing.",
    "a broken thing": "It is brave to tell the truth.",
    "a message": "A promise is a promise.",
    "a wish": "The best wish is one for somebody else.",
    "a new neighbour": "A kind word can open a door.",
    "sharing in a hard winter": "What is enough for one is enough for two.",
    "a birthday present": "The best presents are made by hand.",
    "building something": "Two can do more than one.",
}
