/* The study, as data: frames by name, and the order in which a child meets them. Paths of pictures are whole strings,
   because the build finds and renames them as such. */
export default {
  "title": "Little Explorers",
  "frames": {
    "welcome": {
      "kind": "frame-consent",
      "title": "Welcome, little explorers!",
      "text": [
        "In this made-up study your child looks at a few pictures and picks a favourite. It takes about two minutes.",
        "Nothing is recorded and nothing leaves this page: it exists to show how a study is built and deployed."
      ],
      "question": "I have read this, and my child and I would like to take part."
    },
    "get-ready": {
      "kind": "frame-instruction",
      "title": "Getting ready",
      "picture": "assets/images/boat.png",
      "pictureText": "A small sailing boat on calm water",
      "steps": [
        "Sit together where the screen is easy to see.",
        "Let your child point; you press the picture.",
        "There are no wrong answers. Stop whenever you like."
      ]
    },
    "favourite-place": {
      "kind": "frame-choice",
      "title": "Where shall the boat sail?",
      "choices": [
        { "value": "moon", "text": "To the moon", "picture": "assets/images/moon.png" },
        { "value": "star", "text": "To the star", "picture": "assets/images/star.png" },
        { "value": "fish", "text": "To the fish", "picture": "assets/images/fish.png" }
      ]
    },
    "about-you": {
      "kind": "frame-survey",
      "title": "A few questions for the grown-up",
      "questions": [
        { "name": "age", "text": "How old is your child?", "options": ["Under 1 year", "1 to 2 years", "3 to 5 years", "Older"] },
        { "name": "fun", "text": "How much did your child enjoy it?", "options": ["A lot", "Somewhat", "Not today"] }
      ]
    },
    "thank-you": {
      "kind": "frame-thanks",
      "title": "Thank you!",
      "text": "That was all. These are the answers that a real study would now keep:"
    }
  },
  "sequence": ["welcome", "get-ready", "favourite-place", "about-you", "thank-you"]
};
