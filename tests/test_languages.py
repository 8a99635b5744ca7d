"""The draw of languages, and what a text can be in."""

from collections import Counter

import languages
from chat_server import ENGLISH


def test_the_draw_is_even_repeats_and_depends_on_seed_and_path():
    names = [f"folder/{number}.json" for number in range(98 * 200)]
    drawn = [languages.draw(languages.LANGUAGES, 0, name) for name in names]
    counts = Counter(drawn)
    assert len(counts) == len(languages.LANGUAGES) == 98 and "English" not in counts
    # Chi-square with 97 degrees of freedom: mean 97, standard deviation 14.
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 97 + 5 * 14
    same = sum(a == languages.draw(languages.LANGUAGES, 1, name) for a, name in zip(drawn, names, strict=True))
    assert abs(same / len(names) - 1 / 98) < 0.005


SENTENCES = {
    "Arabic": "مقطوعة هادئة للعود والكمان.",
    "Armenian": "Հանգիստ երգ ձայնի և դաշնամուրի համար։",
    "Bengali": "কণ্ঠ ও পিয়ানোর জন্য একটি শান্ত গান।",
    "Burmese": "စန္ဒရားအတွက် တေးသွားတစ်ပုဒ်။",
    "Chinese (Simplified)": "巴赫的G大调小步舞曲，选自《安娜·玛格达莱娜曲集》。",
    "French": "Une chanson tirée du recueil The Songs and Airs of Ireland, avec accompagnement de piano et violon.",
    "Georgian": "მშვიდი სიმღერა ხმისა და ფორტეპიანოსთვის.",
    "German": "Ein ruhiges Lied für Stimme und Klavier.",
    "Greek": "Ένα ήρεμο τραγούδι για φωνή και πιάνο.",
    "Hebrew": "שיר שקט לקול ופסנתר.",
    "Hindi": "आवाज़ और पियानो के लिए एक शांत गीत।",
    "Hindi (Romanized)": "Aawaaz aur piano ke liye ek shaant geet.",
    "Japanese": "声とピアノのための静かな歌。",
    "Khmer": "បទចម្រៀងស្ងប់ស្ងាត់សម្រាប់ព្យាណូ។",
    "Korean": "목소리와 피아노를 위한 조용한 노래.",
    "Kurdish (Kurmanji)": "Straneke aram ji bo deng û piyanoyê.",
    "Russian": "Спокойная песня для голоса и фортепиано.",
    "Serbian": "Мирна песма за глас и клавир.",
    "Tamil": "குரலுக்கும் பியானோவுக்குமான அமைதியான பாடல்.",
    "Thai": "เพลงสงบสำหรับเสียงร้องและเปียโน",
    "Uyghur": "ئاۋاز ۋە پىئانىنو ئۈچۈن تىنچ ناخشا.",
    "Vietnamese": "Một bài hát êm đềm cho giọng hát và dương cầm.",
}


def test_texts_fit_their_language_and_not_another_script():
    for language, sentence in SENTENCES.items():
        assert languages.misfit(sentence, language) is None, language
        assert "English" in languages.misfit(ENGLISH, language) or languages.SCRIPTS[language] != {"LATIN"}, language
        assert languages.misfit(ENGLISH, language), language
        for other, scripts in languages.SCRIPTS.items():
            if not scripts & languages.SCRIPTS[language]:
                assert languages.misfit(sentence, other), (language, other)
    assert languages.misfit("巴赫的小步舞曲，选自《Notebook for Anna Magdalena》。", "Chinese (Simplified)") is None
    assert languages.misfit(ENGLISH, "English") is None
    assert languages.misfit("1812!", "French") and languages.misfit(ENGLISH, "Klingon")
    assert languages.misfit("Qapla', tlhIngan Hol.", "Klingon") is None


def test_names_of_languages():
    assert languages.is_name_of("Chinese", "Chinese (Simplified)")
    assert languages.is_name_of("simplified chinese", "Chinese (Simplified)")
    assert not languages.is_name_of("Danish", "Norwegian") and not languages.is_name_of("", "Norwegian")
