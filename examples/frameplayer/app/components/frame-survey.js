import Ember from 'ember';

export default Ember.Component.extend({
  given: Ember.computed('frame', () => Ember.Object.create()),

  actions: {
    answer(question, event) {
      this.get('given').set(question.name, event.target.value);
    },

    go() {
      const given = this.get('given');
      this.get('next')(this.get('frame.questions').map((question) => (
        { question: question.text, answer: given.get(question.name) || 'not answered' }
      )));
    }
  }
});
